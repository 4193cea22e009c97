//! The side-by-side run: targets started on one core, the load on another, rounds interleaved,
//! Markdown out.
//!
//! Comparisons are made within one run and round by round: figures of different days say more
//! about the machine than about the programs.

pub mod beside;
pub mod division;
pub mod http;
pub mod instructions;
pub mod metrics;
pub mod process;
pub mod report;
pub mod rows;
pub mod run;
pub mod speech;
pub mod targets;
