//! The front-end library that `/client.js` serves.
//!
//! `assets/client.js` is built from `clients/js` and committed, so that the gateway needs nothing
//! but Rust to build.

use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use crate::proto::http::Response;

const SOURCE: &str = include_str!("../../assets/client.js");

/// The entity tag (RFC 9110 §8.8.3): the same for the same library, whichever gateway serves it.
static ETAG: LazyLock<String> =
    LazyLock::new(|| format!("\"{}\"", &BASE64URL_NOPAD.encode(&Sha256::digest(SOURCE))[..16]));

/// `/client.js`. It is public code, so any page may import it, whatever `allowed_origins` says.
pub fn response() -> Response {
    Response::new(200, "text/javascript; charset=utf-8", SOURCE.into())
        .with("ETag", ETAG.as_str())
        .with("Cache-Control", "no-cache")
        .with("Access-Control-Allow-Origin", "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_is_a_module_that_any_page_may_import() {
        let response = response();
        let header =
            |name| response.headers.iter().find(|(found, _)| *found == name).unwrap().1.as_ref();
        assert_eq!(header("Access-Control-Allow-Origin"), "*");
        assert!(SOURCE.contains("export{") && SOURCE.contains("Gateway"), "it exports nothing");
        assert_eq!(header("ETag").len(), 18);
    }
}
