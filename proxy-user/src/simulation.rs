//! The datapath run on the host: `proxy_common::datapath` over ordinary memory.
//!
//! [`Simulation`] takes records from any [`Records`] (the live maps for `causeway explain`,
//! collections in tests), keeps what the datapath would change to itself, and tells an [`Observer`]
//! each lookup in the order in which the datapath makes them.
//!
//! ```
//! # use proxy_user::simulation::{Frame, Layer, Simulation};
//! # use proxy_common::datapath::{TcIngress, run, verdict::Action};
//! # fn explain<R>(records: &R, bytes: &[u8])
//! # where R: proxy_user::simulation::Records<proxy_common::abi::V4>
//! #        + proxy_user::simulation::Records<proxy_common::abi::V6> {
//! let simulation = Simulation::new(records, |lookup| println!("{lookup:?}"));
//! let mut frame = Frame::new(bytes, Layer::SocketBuffer);
//! let verdict = run::<TcIngress, _, _>(&mut frame, &simulation, 2);
//! assert_eq!(verdict.action(), Action::Pass);
//! # }
//! ```

mod fib;
mod frame;
mod records;
mod tables;

pub use fib::Fib;
pub use frame::{Frame, Layer};
pub use records::{FlowRecord, Lookup, Observer, Records, SharedRecords, Tuple, narrow, wide};
pub use tables::{Changes, Simulation};
