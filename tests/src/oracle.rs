//! The oracle: the same random Services go through a real API server to kube-proxy in one world and to
//! Causeway in another; the same questions are asked in both, and the answers are compared one by one.
//!
//! [`scenario`] draws what there is, [`objects`] writes it as Kubernetes does, [`question`] says who asks
//! whom, [`answer`] what was found out and whether that is the same. [`difference`] is the list of what
//! may differ, and why. All of these are pure. [`worlds`] stand, [`ask`] and [`serve`] are the ends of
//! the traffic in them, [`run`] does one seed after the other, [`report`] tells.

pub mod answer;
pub mod ask;
pub mod difference;
pub mod objects;
pub mod question;
pub mod report;
pub mod run;
pub mod scenario;
pub mod serve;
pub mod worlds;
