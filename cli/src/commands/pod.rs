//! `ternfleet pod`: what runs in a rented pod. It finds or fetches the model, makes sure that it is the right one, finds a
//! place to write, and becomes the worker.
//!
//! Everything comes by the environment, since that is what an order for a pod carries. It works as any user, on any image,
//! with any mount: what is there is used, and what cannot be written is left alone.

mod model;
pub(crate) mod places;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser};

use super::worker::Worker;
use crate::guard::Guard;
use crate::output::write_secret;
use places::Places;

#[derive(Debug, Args)]
pub(crate) struct Pod {
    /// A name of `ternfleet model list`, or a model file
    #[arg(long, value_name = "NAME", env = "TERNFLEET_MODEL")]
    model: Option<String>,
    /// Address of the model file, in place of the model's own
    #[arg(long, value_name = "URL", env = "TERNFLEET_MODEL_URL")]
    model_url: Option<String>,
    /// Expected digest of the model file [default: the manifest's]
    #[arg(long, value_name = "SHA-256", env = "TERNFLEET_MODEL_SHA256", value_parser = digest)]
    model_sha256: Option<String>,
    /// Address of the manifest, for a model that is not in `ternfleet model list`
    #[arg(long, value_name = "URL", env = "TERNFLEET_MANIFEST_URL")]
    manifest_url: Option<String>,
    /// Folders in which to look for the model and to store it; default folders are tried after them
    #[arg(long = "dir", value_name = "DIR", env = "TERNFLEET_POD_DIR", value_delimiter = ':')]
    dirs: Vec<PathBuf>,
    /// Certificates of the NATS server, as PEM text
    #[arg(long, value_name = "PEM", env = "TERNFLEET_NATS_CA_PEM", hide_env_values = true)]
    nats_ca_pem: Option<String>,
    /// Address of a coordinator that serves models under /dist/
    #[arg(long, value_name = "URL", env = "TERNFLEET_DIST_URL")]
    dist_url: Option<String>,
    /// Token for that coordinator
    #[arg(long, value_name = "TOKEN", env = "TERNFLEET_DIST_TOKEN", hide_env_values = true)]
    dist_token: Option<String>,
    /// Flags for `ternfleet worker`
    #[arg(last = true, value_name = "FLAG")]
    worker: Vec<OsString>,
}

/// The worker's command line.
#[derive(Debug, Parser)]
#[command(name = "worker")]
struct WorkerLine {
    #[command(flatten)]
    worker: Worker,
}

fn digest(text: &str) -> Result<String, String> {
    let fits = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if fits { Ok(text.to_owned()) } else { Err("must be 64 lower-case hexadecimal digits".to_owned()) }
}

impl Pod {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let guard = Guard::arm();
        let places = Places::find(&self.dirs);
        let outcome = self.prepare(&places);
        let line = match &outcome {
            Ok(line) => line.clone(),
            // Even then the worker's configuration tells how to reach the coordinator.
            Err(_) => self.line(None, self.certificates(&places).ok().flatten().as_deref(), None),
        };
        let worker = WorkerLine::try_parse_from(line).context("the flags of the worker are invalid")?.worker;
        match outcome {
            Ok(line) => worker.run_under(&guard, &line),
            Err(error) => {
                if !worker.only_prints() {
                    worker.tell_failure(&error);
                    guard.failed(&error);
                }
                Err(error)
            }
        }
    }

    /// The worker's command line, when everything that it needs is there.
    fn prepare(&self, places: &Places) -> anyhow::Result<Vec<OsString>> {
        let certificates = self.certificates(places)?;
        let kept = places.own().ok().map(|folder| folder.join("pod.creds"));
        if self.has_server() {
            return Ok(self.line(None, certificates.as_deref(), kept.as_deref()));
        }
        let model = self.find_model(places)?;
        tracing::info!(model = %model.display(), "the model is verified");
        Ok(self.line(Some(&model), certificates.as_deref(), kept.as_deref()))
    }

    /// A server computes in this pod, and finds its model by itself.
    fn has_server(&self) -> bool {
        let words: Vec<_> = self.worker.iter().map(|word| word.to_string_lossy()).collect();
        let by_flag = words.iter().any(|word| word == "--engine=openai")
            || words.windows(2).any(|pair| pair[0] == "--engine" && pair[1] == "openai");
        by_flag || std::env::var_os("TERNFLEET_ENGINE").is_some_and(|engine| engine == "openai")
    }

    /// The program's name comes first.
    fn line(&self, model: Option<&Path>, certificates: Option<&Path>, kept: Option<&Path>) -> Vec<OsString> {
        let mut line: Vec<OsString> = ["worker", "--engines", "auto"].map(OsString::from).into();
        if let Some(model) = model {
            line.extend(["--model".into(), model.into()]);
        }
        let mut set = |key: &str, path: Option<&Path>| {
            let variable = format!("TERNFLEET_{}", key.to_uppercase());
            if let Some(path) =
                path.filter(|_| std::env::var_os(variable).is_none_or(|value| value.is_empty()))
            {
                line.extend(["--set".into(), format!("{key}={}", path.display()).into()]);
            }
        };
        set("nats_root_certificates", certificates);
        set("nats_pod_file", kept);
        line.extend(self.worker.iter().cloned());
        line
    }

    fn certificates(&self, places: &Places) -> anyhow::Result<Option<PathBuf>> {
        let Some(pem) = self.nats_ca_pem.as_deref().filter(|pem| !pem.trim().is_empty()) else {
            return Ok(None);
        };
        let path = places.own()?.join("nats-ca.crt");
        write_secret(&path, &format!("{}\n", pem.trim()))?;
        Ok(Some(path))
    }
}
