//! The load generator: clients and backend of a target, in one process and one epoll loop.
//!
//! Playing both ends costs one core and has two advantages: every received byte can be compared
//! with what was sent, and there is no second program whose noise could be mistaken for the
//! target's.
//!
//! `World` is the loop and its connections; `work` has the workloads; `results` knows result
//! delivery; `http` plays plain HTTP. A client says in its request target (`?n=…`) which connection
//! it is, so that the backend end knows its role.

pub mod http;
pub mod results;
mod socket;
pub mod speech;
pub mod work;
mod world;

pub use world::{After, Pattern, Plan, Publisher, Refill, Tally, Way, World, waiting};
