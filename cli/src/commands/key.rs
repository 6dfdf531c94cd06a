//! `ternfleet key new` makes an API key for the gateway and the entry that knows it; `key proof` prints the public key that
//! checks proofs of batches.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use ternfleet_proto::{TenantId, table};

use crate::client::Fleet;
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::stop;

#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print an entry for the coordinator's key file; the key itself is printed once, on standard error
    New(New),
    /// Print the public key of the fleet's proofs, as `verify --key` takes it
    Proof(Proof),
}

#[derive(Debug, Args)]
struct Proof {
    #[command(flatten)]
    connection: Connection,
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
        match self.action {
            Action::New(new) => new.run(),
            Action::Proof(proof) => proof.run(),
        }
    }
}

impl Proof {
    fn run(self) -> anyhow::Result<ExitCode> {
        let entry = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            let entry = fleet.bus.kv_get(table::KV_CONTROL, table::PROOF_PUBLIC_KEY).await;
            entry.context("the fleet's keys cannot be read: use an operator's or a coordinator's credentials")
        })?;
        let entry =
            entry.context("this fleet has no key for proofs yet: start a coordinator of this version")?;
        say(&String::from_utf8_lossy(&entry.value))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl New {
    fn run(self) -> anyhow::Result<ExitCode> {
        let New { tenant, operator, json } = self;
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
