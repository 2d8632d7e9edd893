//! The program that decodes pictures: the real one, or a fake.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use imagesvc::decoder;
use tempfile::TempDir;

/// Settings with the real decoder. The default program is `/proc/self/exe`, which is the test
/// binary here.
pub fn decoder_settings() -> decoder::Settings {
    let program = env!("CARGO_BIN_EXE_imagesvc").into();
    let max_memory = 512 << 20;
    decoder::Settings { program, ..decoder::Settings::new(max_memory) }
}

/// Creates a fake decoder. When the service starts, it decodes a test picture to a square with a side of
/// 1 pixel: the second and the third argument are `square` and `1`. For this picture, the fake runs the
/// real decoder. For every other picture, the fake writes its process id to the file `pid`, and runs the
/// shell script `script`.
pub fn fake_decoder(folder: &TempDir, script: &str) -> PathBuf {
    let program = folder.path().join("decoder");
    let real_program = decoder_settings().program;
    let text = format!(
        "#!/bin/sh\n[ \"$2 $3\" = 'square 1' ] && exec '{}' \"$@\"\necho $$ > '{}'\n{script}\n",
        real_program.display(),
        folder.path().join("pid").display(),
    );
    // A shell writes the file. If this process wrote the file, a program that another test starts
    // at the same time might inherit the open file. The system refuses to run a file that is open
    // for writing.
    let written = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""])
        .args([program.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success());
    // The owner can execute the file.
    assert!(fs::metadata(&program).unwrap().permissions().mode() & 0o100 != 0);
    program
}
