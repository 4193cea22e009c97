//! Wire formats: HTTP heads, the WebSocket handshake and its frames. Pure: bytes in, values out.

mod base64;
pub mod body;
pub mod control;
pub mod forward;
pub mod http;
pub mod media;
mod members;
pub mod message;
pub mod path;
pub mod proxy_header;
pub mod resp;
pub mod speech;
pub mod upgrade;
pub mod ws;
pub mod ws_reader;
