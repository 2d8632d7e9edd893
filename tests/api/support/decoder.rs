//! The decoder's program: the real one, and fakes.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use imagesvc::decoder;
use tempfile::TempDir;

/// Settings with the real decoder. By default a decoder is `/proc/self/exe`, which here is the
/// tests' own program.
pub fn decoder_settings() -> decoder::Settings {
    let program = env!("CARGO_BIN_EXE_imagesvc").into();
    decoder::Settings { program, ..decoder::Settings::new(512 << 20) }
}

/// A fake decoder. It passes the service's trial decode at start, and then runs a script.
pub fn fake_decoder(folder: &TempDir, script: &str) -> PathBuf {
    let program = folder.path().join("decoder");
    let real = decoder_settings().program;
    let text = format!(
        "#!/bin/sh\n[ \"$2 $3\" = 'square 1' ] && exec '{}' \"$@\"\necho $$ > '{}'\n{script}\n",
        real.display(),
        folder.path().join("pid").display(),
    );
    // A shell writes the file, because a file that was open for writing in this process may not be
    // runnable while another test starts a program.
    let copied = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""])
        .args([program.as_os_str(), text.as_ref()])
        .status();
    assert!(copied.unwrap().success());
    assert!(fs::metadata(&program).unwrap().permissions().mode() & 0o100 != 0);
    program
}
