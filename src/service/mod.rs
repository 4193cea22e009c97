//! Rules without sockets: where a request goes, which backend is tried next, who is admitted,
//! what reports show.

pub mod assets;
pub mod attempt;
pub mod audio_names;
pub mod bus;
pub mod channels;
pub mod client_library;
pub mod endpoints;
pub mod feeds;
pub mod histogram;
pub mod ledger;
pub mod limits;
pub mod link;
pub mod name;
pub mod origin;
mod parsed;
pub mod report;
pub mod results;
pub mod route;
pub mod sentence;
pub mod stats;
pub mod streams;
pub mod taps;
pub mod tasks;
pub mod token;
pub mod trust;
pub mod upstreams;
pub mod url;
pub mod watch;
