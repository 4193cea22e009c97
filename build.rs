//! Writes the media types of `mime_guess` into one text, `ext type` a line, in the order of the
//! extensions. Its own table of pointers takes four times as much of the binary, most of it for
//! relocations.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut extensions = mime_guess::get_extensions("*", "*").unwrap_or_default().to_vec();
    extensions.sort_unstable();
    extensions.dedup();
    let types = extensions.iter().filter_map(|extension| {
        let media_type = mime_guess::from_ext(extension).first_raw()?;
        Some(format!("{extension} {media_type}\n"))
    });
    let folder = std::env::var_os("OUT_DIR").expect("cargo sets it");
    let path = Path::new(&folder).join("media_types.txt");
    std::fs::write(path, types.collect::<String>()).expect("cargo has made the folder");
}
