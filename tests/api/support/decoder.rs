//! The decoder's program: the real one, and what plays it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use imagesvc::decoder;
use tempfile::TempDir;

/// Decoders are the service's own program; here, `/proc/self/exe` is the tests.
pub fn decoder_settings() -> decoder::Settings {
    let program = env!("CARGO_BIN_EXE_imagesvc").into();
    decoder::Settings { program, ..decoder::Settings::new(512 << 20) }
}

/// A program that does as the decoder when the service tries it out, and else runs a script.
pub fn fake_decoder(folder: &TempDir, script: &str) -> PathBuf {
    let program = folder.path().join("decoder");
    let real = decoder_settings().program;
    let text = format!(
        "#!/bin/sh\n[ \"$2 $3\" = 'square 1' ] && exec '{}' \"$@\"\necho $$ > '{}'\n{script}\n",
        real.display(),
        folder.path().join("pid").display(),
    );
    // Elsewhere first: while another test starts a program, a file that is open for writing here
    // cannot be run.
    let copied = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""])
        .args([program.as_os_str(), text.as_ref()])
        .status();
    assert!(copied.unwrap().success());
    assert!(fs::metadata(&program).unwrap().permissions().mode() & 0o100 != 0);
    program
}
