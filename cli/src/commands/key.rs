//! `ternfleet key new`: makes an API key for the gateway and the entry that knows it.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use ternfleet_proto::TenantId;

use crate::output::{say, say_json};

#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print an entry for the coordinator's key file; the key itself is printed once, on standard error
    New(New),
}

#[derive(Debug, Args)]
struct New {
    /// Tenant of the key
    #[arg(long, value_name = "NAME", default_value = "default")]
    tenant: TenantId,
    /// Operator key: may also see and change what the fleet rents
    #[arg(long)]
    operator: bool,
    /// Print one JSON object with `tenant`, `key` and `blake3` in place of the entry
    #[arg(long)]
    json: bool,
}

impl Key {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Action::New(New { tenant, operator, json }) = self.action;
        let mut secret = [0u8; 32];
        getrandom::fill(&mut secret).context("the system returns no random bytes")?;
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("tf-{hex}");
        if json {
            let hash = blake3::hash(key.as_bytes()).to_hex().to_string();
            say_json(
                &serde_json::json!({ "tenant": tenant, "key": key, "blake3": hash, "operator": operator }),
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        // Only the hash is kept: 32 random bytes leave nothing to guess.
        say(&format!(
            "[[key]]\ntenant = \"{tenant}\"\nblake3 = \"{}\"\n{}",
            blake3::hash(key.as_bytes()).to_hex(),
            if operator { "operator = true\n" } else { "" }
        ))?;
        eprintln!("the key, shown only this once: {key}");
        eprintln!("append the entry to the file that gateway.keys_file of the coordinator names");
        Ok(ExitCode::SUCCESS)
    }
}
