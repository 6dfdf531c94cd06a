//! `ternfleet man`: manual pages, made from the commands' own definition.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};

use crate::output::say;

#[derive(Debug, Args)]
#[command(after_help = "Install them:  ternfleet man --out ~/.local/share/man/man1\n\
                        Read one:      ternfleet man | man -l -")]
pub(crate) struct Man {
    /// Folder for one page per command (ternfleet.1, ternfleet-submit.1, …); created if missing. Without it the
    /// first page is printed to standard output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    pub(crate) fn run(self, mut program: Command) -> anyhow::Result<ExitCode> {
        program.build();
        let Some(folder) = &self.out else {
            say(String::from_utf8_lossy(&page(&program, "ternfleet")?).trim_end())?;
            return Ok(ExitCode::SUCCESS);
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let written = write_pages(&program, "ternfleet", folder)?;
        eprintln!("{written} pages in {}", folder.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// One command's page and, below it, those of its own commands; hidden ones have none.
fn write_pages(command: &Command, name: &str, folder: &Path) -> anyhow::Result<usize> {
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut written = 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
    {
        written += write_pages(below, &format!("{name}-{}", below.get_name()), folder)?;
    }
    Ok(written)
}

fn page(command: &Command, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let shown = command.clone().display_name(name.to_owned());
    clap_mangen::Man::new(shown).render(&mut text).context("a manual page cannot be made")?;
    Ok(text)
}
