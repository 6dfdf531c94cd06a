//! `ternfleet completions SHELL`: a completion script, made from the commands' own definition.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output::say;

#[derive(Debug, Args)]
#[command(
    after_help = "bash:  ternfleet completions bash > ~/.local/share/bash-completion/completions/ternfleet\n\
                        zsh:   ternfleet completions zsh > \"${fpath[1]}/_ternfleet\"\n\
                        fish:  ternfleet completions fish > ~/.config/fish/completions/ternfleet.fish"
)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, mut program: Command) -> anyhow::Result<ExitCode> {
        // Into memory first: the generator panics when its reader goes away.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, "ternfleet", &mut script);
        say(String::from_utf8_lossy(&script).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
