//! What is left of the CA in a build without TLS.

use super::subject::CertSubject;
use super::{CA_KEY, Certified, lock, make_folder};
use std::path::Path;

/// There is none.
pub enum Authority {}

impl Authority {
    /// Refuses.
    pub fn open(_: &Path) -> Result<Authority, String> {
        let _ = (CA_KEY, lock, make_folder);
        Err("this program was built without TLS (the feature `tls`)".into())
    }

    /// Is never asked.
    pub fn certify(&self, _: &[CertSubject]) -> Result<Certified, String> {
        match *self {}
    }
}
