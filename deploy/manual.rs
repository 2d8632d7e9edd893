//! Writes the man pages, and the completions for bash and zsh, into a folder. They are made from
//! the same table of settings and the same parser as `--help`. `deploy/build-rpm` packages them.
//! This command writes them into `target/manual`:
//!
//! ```text
//! cargo run --example manual -- target/manual
//! ```

use std::{collections::BTreeSet, env, fs, io, path::Path};

use clap::Command;
use clap_complete::{
    generate_to,
    shells::{Bash, Zsh},
};
use clap_mangen::Man;
use imagesvc::config::{ABOUT_SETTINGS, documented_command_line, secrets};
use roff::{Roff, bold, roman};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1);
    let folder = folder.ok_or_else(|| io::Error::other("the argument must be a folder"))?;
    write(folder.as_ref())
}

/// Writes all files into a folder. Creates the folder if it does not exist.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    generate_to(Bash, &mut documented_command_line(), "imagesvc", folder)?;
    generate_to(Zsh, &mut documented_command_line(), "imagesvc", folder)?;
    // `build` sets the name of each command's man page, and how many values each argument takes. It
    // also copies the flags of the settings to each command.
    let mut imagesvc = documented_command_line().disable_help_subcommand(true);
    imagesvc.build();
    let settings: BTreeSet<_> = imagesvc
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .map(|arg| arg.get_id().clone())
        .collect();
    for command in imagesvc.get_subcommands() {
        // Only one page lists the settings: imagesvc(1).
        let command = command.clone().mut_args(|arg| {
            let is_setting = settings.contains(arg.get_id());
            arg.hide(is_setting)
        });
        write_page(folder, command, &see_imagesvc())?;
    }
    let imagesvc = imagesvc
        .override_usage("imagesvc [options] [command]") // not a list of all flags
        .subcommand_help_heading("COMMANDS");
    write_page(folder, imagesvc, &environment())
}

/// Writes the man page of a command, with `last_section` at its end.
fn write_page(folder: &Path, command: Command, last_section: &Roff) -> io::Result<()> {
    let has_subcommands = command.has_subcommands();
    let source = concat!("imagesvc ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("imagesvc");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    last_section.to_writer(&mut page)?;
    fs::write(folder.join(man.get_filename()), page)
}

/// A section for the page of a command, which says where the settings are.
fn see_imagesvc() -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["SETTINGS"]);
    section.text([
        roman("Every setting of the service, except secrets, is also a flag of this command: see "),
        bold("imagesvc"),
        roman("(1)."),
    ]);
    section
}

/// A section that explains the environment variables, and lists the settings that have no flag.
fn environment() -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["ENVIRONMENT"]);
    section.text([roman(ABOUT_SETTINGS)]);
    for (name, help) in secrets() {
        section.control("TP", []);
        section.text([bold(name)]);
        section.text([roman(help)]);
    }
    section
}
