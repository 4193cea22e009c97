//! What the benchmark programs share: the load generator, the floor programs and the side-by-side
//! driver.
//!
//! Nothing here links against the gateway. It is one more program behind a port, driven exactly
//! like the peers it is compared with, so that no figure can come from knowing its insides.

pub mod compare;
pub mod floor;
pub mod interrupt;
pub mod load;
pub mod net;
pub mod options;
pub mod resp;
pub mod stats;
pub mod tls;
pub mod wire;

/// What goes wrong in a benchmark: a sentence for the person who runs it. A run with a fault has no
/// figures.
pub type Fault = String;
