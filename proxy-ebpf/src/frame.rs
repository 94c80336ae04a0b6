//! A hook's context as a frame.

mod skb;
mod xdp;

pub(crate) use skb::SkbFrame;
pub(crate) use xdp::XdpFrame;
