//! Prometheus beside a local fleet: finding it, and its configuration. It scrapes the coordinator, which carries every
//! worker's figures as well, and evaluates the rules that ship.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::data_dir::DataDir;
use super::keeper::Part;
use super::probe::free_port;
use crate::shipped;

/// Names the program to use.
const PROGRAM_VARIABLE: &str = "TERNFLEET_PROMETHEUS";
pub(crate) const NAME: &str = "prometheus";
const USUAL_PORT: u16 = 9090;
/// Rules, relative to the repository.
const RULES: [&str; 2] = ["dashboards/rules/recording.yml", "dashboards/rules/alerts.yml"];
const GRACE: Duration = Duration::from_secs(3);

/// The program, and where it will listen.
#[derive(Debug, Clone)]
pub(crate) struct Prometheus {
    program: PathBuf,
    pub(crate) port: u16,
    rules: Vec<PathBuf>,
}

impl Prometheus {
    /// The one named in the environment, else the one on PATH; its port is none of `taken`.
    ///
    /// # Errors
    /// When there is none; the message says how to get it.
    pub(crate) fn find(taken: &[u16]) -> anyhow::Result<Prometheus> {
        let program = match std::env::var_os(PROGRAM_VARIABLE).filter(|name| !name.is_empty()) {
            Some(named) => PathBuf::from(named),
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let on_path = std::env::split_paths(&path).map(|folder| folder.join(NAME));
                on_path.into_iter().find(|program| program.is_file()).context(
                    "--prometheus needs Prometheus, and none is on PATH: install it (Debian: apt-get install \
                     prometheus; others: https://prometheus.io/download), or set TERNFLEET_PROMETHEUS to the program",
                )?
            }
        };
        if !program.is_file() {
            bail!("{PROGRAM_VARIABLE} names {}, which is not a file", program.display());
        }
        let rules = RULES.into_iter().filter_map(shipped::file).collect();
        Ok(Prometheus { program, port: free_port(&[USUAL_PORT], taken)?, rules })
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The program to keep running, with a configuration that names the coordinator's port.
    pub(crate) fn part(&self, dir: &Rc<DataDir>, http_port: u16) -> Part {
        let (this, dir) = (self.clone(), dir.clone());
        let command = move || {
            let config = dir.root().join("prometheus.yml");
            std::fs::write(&config, this.configuration(http_port)?)
                .with_context(|| format!("cannot write {}", config.display()))?;
            Ok(vec![
                this.program.display().to_string(),
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", dir.root().join(NAME).display()),
                "--storage.tsdb.retention.time=7d".to_owned(),
                format!("--web.listen-address=127.0.0.1:{}", this.port),
            ])
        };
        Part { name: NAME.to_owned(), command: Box::new(command), cpus: Vec::new(), grace: GRACE }
    }

    fn configuration(&self, http_port: u16) -> anyhow::Result<String> {
        let rules = self.rules.iter().map(|path| quoted(path)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(format!(
            "# Written by `ternfleet up --prometheus` at each start.\n\
             global: {{ scrape_interval: 2s, evaluation_interval: 2s }}\n\
             rule_files: [{}]\n\
             scrape_configs:\n\
             \x20 - job_name: ternfleet\n\
             \x20   static_configs: [ {{ targets: [\"127.0.0.1:{http_port}\"] }} ]\n",
            rules.join(", ")
        ))
    }
}

/// A JSON string is also a string of YAML.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(serde_json::to_string(text)?)
}
