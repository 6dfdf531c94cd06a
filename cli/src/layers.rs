//! Layered configuration of the services: defaults < file < `TERNFLEET_*` environment < flags.
//!
//! Keys are the fields of the options themselves, so that nothing is listed twice. An unknown key is refused, and
//! every fault is reported at once. Called by `worker` and `coordinator`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use config::{Config, File, FileFormat, Source, Value};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use ternfleet_proto::nats;

const PREFIX: &str = "TERNFLEET_";
/// Variables with this prefix that are read elsewhere and are no keys of a service.
const OTHER_VARIABLES: [&str; 19] = [
    "nats_server",
    "isa",
    "log",
    "log_format",
    "tenant",
    "config",
    "model_dir",
    "state_dir",
    "api_key",
    // Of `ternfleet launch`.
    "files_url",
    // Of `ternfleet pod` and of the script that fetches it.
    "model_url",
    "model_sha256",
    "manifest_url",
    "pod_dir",
    "nats_ca_pem",
    "dist_url",
    "dist_token",
    "binary_url",
    "binary_sha256",
];

/// Keys whose values are never printed.
const SECRETS: [&str; 3] = ["nats_nkey_seed", "nats_token", "nats_join_token"];

/// One origin of values, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    File,
    Environment,
    Flag,
}

impl Origin {
    fn named(self) -> &'static str {
        match self {
            Origin::File => "file",
            Origin::Environment => "environment",
            Origin::Flag => "flag",
        }
    }
}

/// The values that were set. Their order is that of their application: the weaker origin first, and within one origin a
/// table before the keys inside it.
#[derive(Debug)]
pub(crate) struct Layers {
    set: BTreeMap<(Origin, String), Value>,
    faults: Vec<String>,
}

/// Effective options of a service and of its connection, and how they came about.
#[derive(Debug)]
pub(crate) struct Effective<T> {
    pub(crate) connection: NatsOptions,
    pub(crate) options: T,
    /// Keys that were set, the weaker origin first.
    origins: Vec<(Origin, String)>,
}

/// How a service reaches NATS; these keys are next to the service's own.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NatsOptions {
    /// Address, or several of one cluster with commas between.
    nats: String,
    nats_credentials_file: Option<PathBuf>,
    nats_nkey_seed: Option<String>,
    nats_token: Option<String>,
    nats_root_certificates: Option<PathBuf>,
    /// Lets a new pod's worker in (`ternfleet nats token` makes it). Of no use to a coordinator.
    pub(crate) nats_join_token: Option<String>,
    /// Where a worker that has joined keeps what it needs to come back without a new token.
    pub(crate) nats_pod_file: Option<PathBuf>,
}

impl Default for NatsOptions {
    fn default() -> NatsOptions {
        NatsOptions {
            nats: "127.0.0.1:4222".to_owned(),
            nats_credentials_file: None,
            nats_nkey_seed: None,
            nats_token: None,
            nats_root_certificates: None,
            nats_join_token: None,
            nats_pod_file: None,
        }
    }
}

impl std::fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsOptions").field("nats", &self.nats).finish_non_exhaustive()
    }
}

impl NatsOptions {
    pub(crate) fn connect_options(&self, name: &str) -> nats::ConnectOptions {
        nats::ConnectOptions {
            url: self.nats.clone(),
            name: name.to_owned(),
            credentials_file: self.nats_credentials_file.clone(),
            nkey_seed: self.nats_nkey_seed.clone(),
            token: self.nats_token.clone(),
            root_certificates: self.nats_root_certificates.clone(),
            ..nats::ConnectOptions::default()
        }
    }
}

/// Flags that every service has.
#[derive(Debug, Args)]
pub(crate) struct ServiceFlags {
    /// Configuration file (TOML); --print-config shows all keys
    #[arg(long, value_name = "FILE", env = "TERNFLEET_CONFIG")]
    config: Option<PathBuf>,
    /// Address of NATS
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Set one key of the configuration; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
    /// Print the resulting configuration with the source of each value, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// Reads file, environment and the common flags for a service with options `T`, whose sister has options `S`.
pub(crate) fn read<T, S>(flags: &ServiceFlags) -> anyhow::Result<Layers>
where
    T: Serialize + Default,
    S: Serialize + Default,
{
    let mut known = keys::<NatsOptions>()?;
    known.extend(keys::<T>()?);
    let mut layers = Layers::read(flags.config.as_deref(), &known, &keys::<S>()?)?;
    for (key, value) in &flags.settings {
        layers.put(Origin::Flag, key, Value::from(value.as_str()), &known);
    }
    layers.flag("nats", flags.nats.clone());
    Ok(layers)
}

impl Layers {
    /// Reads the file, if any, and this process's environment. `other_keys` are those of the sister service, whose
    /// variables may be in the same environment.
    fn read(file: Option<&Path>, known: &[String], other_keys: &[String]) -> anyhow::Result<Layers> {
        let mut layers = Layers { set: BTreeMap::new(), faults: Vec::new() };
        if let Some(path) = file {
            let values = File::from(path)
                .format(FileFormat::Toml)
                .collect()
                .with_context(|| format!("cannot use the configuration file {}", path.display()))?;
            for (key, value) in values {
                layers.put(Origin::File, &key, value, known);
            }
        }
        for (variable, text) in std::env::vars() {
            let Some(key) = variable.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else { continue };
            // Two underscores lead into a table: TERNFLEET_QUOTAS__BATCHES_MAX.
            let key = key.replace("__", ".");
            let read_elsewhere = OTHER_VARIABLES.contains(&key.as_str()) || key.starts_with("test_");
            if read_elsewhere || (!is_known(known, &key) && is_known(other_keys, &key)) {
                continue;
            }
            layers.put(Origin::Environment, &key, Value::from(text), known);
        }
        Ok(layers)
    }

    /// A flag, when it was given.
    pub(crate) fn flag(&mut self, key: &str, value: Option<impl Into<Value>>) -> &mut Layers {
        if let Some(value) = value {
            self.set.insert((Origin::Flag, key.to_owned()), value.into());
        }
        self
    }

    /// The options that result; or every fault at once.
    pub(crate) fn resolve<T: Serialize + DeserializeOwned + Default>(self) -> anyhow::Result<Effective<T>> {
        let mut faults = self.faults.clone();
        let connection = self.part::<NatsOptions>(&mut faults)?;
        let options = self.part::<T>(&mut faults)?;
        match (connection, options) {
            (Some(connection), Some(options)) if faults.is_empty() => {
                Ok(Effective { connection, options, origins: self.set.into_keys().collect() })
            }
            _ => bail!("the configuration has {} error(s):\n  {}", faults.len(), faults.join("\n  ")),
        }
    }

    /// The options of one kind among the values; each value is tried alone first, so that all faults are found.
    fn part<P: Serialize + DeserializeOwned + Default>(
        &self,
        faults: &mut Vec<String>,
    ) -> anyhow::Result<Option<P>> {
        let keys = keys::<P>()?;
        let mine: Vec<_> = self.set.iter().filter(|((_, key), _)| is_known(&keys, key)).collect();
        let before = faults.len();
        for ((origin, key), value) in &mine {
            if let Err(reason) = with_defaults::<P>([(key, *value)]) {
                faults.push(format!("{key} ({}): {reason}", origin.named()));
            }
        }
        if faults.len() > before {
            return Ok(None);
        }
        let whole = with_defaults(mine.into_iter().map(|((_, key), value)| (key, value)));
        whole.map(Some).context("the configuration is inconsistent")
    }

    fn put(&mut self, origin: Origin, key: &str, value: Value, known: &[String]) {
        if is_known(known, key) {
            self.set.insert((origin, key.to_owned()), value);
        } else {
            self.faults.push(format!(
                "{key} ({}): unknown key; known keys are {}",
                origin.named(),
                known.join(", ")
            ));
        }
    }
}

impl<T: Serialize> Effective<T> {
    /// What `--print-config` shows: every key as a configuration file would hold it, and where its value came from.
    pub(crate) fn print(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for (key, value) in fields(&self.connection)?.into_iter().chain(fields(&self.options)?) {
            let origin = self.origin_of(&key);
            let line = match value {
                serde_json::Value::Null => format!("# {key} is not set"),
                _ if SECRETS.contains(&key.as_str()) => format!("# {key} is set and not shown  # {origin}"),
                serde_json::Value::Object(_) => format!("{key} = {}  # {origin}", inline_table(&value)),
                _ => format!("{key} = {value}  # {origin}"),
            };
            text.push_str(&line);
            text.push('\n');
        }
        Ok(text)
    }
}

impl<T> Effective<T> {
    /// Where a value came from: the strongest origin that set all of it, then each key inside that was set later.
    fn origin_of(&self, key: &str) -> String {
        let inside = format!("{key}.");
        let whole = self.origins.iter().filter(|(_, set)| set == key).map(|(origin, _)| *origin).max();
        let mut text = whole.map_or("default", Origin::named).to_owned();
        let later = self
            .origins
            .iter()
            .filter(|(origin, set)| set.starts_with(&inside) && whole.is_none_or(|whole| *origin >= whole));
        let later: BTreeMap<&str, Origin> = later.map(|(origin, set)| (set.as_str(), *origin)).collect();
        for (set, origin) in later {
            text += &format!(", {set}: {}", origin.named());
        }
        text
    }
}

/// A key, or a path into the table of a key.
fn is_known(known: &[String], key: &str) -> bool {
    let first = key.split('.').next().unwrap_or(key);
    known.iter().any(|name| name == first)
}

/// The keys of some options: the fields of their struct.
fn keys<T: Serialize + Default>() -> anyhow::Result<Vec<String>> {
    Ok(fields(&T::default())?.into_iter().map(|(key, _)| key).collect())
}

fn fields<T: Serialize>(options: &T) -> anyhow::Result<Vec<(String, serde_json::Value)>> {
    let mut options = serde_json::to_value(options).context("options are not a table")?;
    options.sort_all_objects();
    match options {
        serde_json::Value::Object(fields) => Ok(fields.into_iter().collect()),
        _ => bail!("options are not a table"),
    }
}

/// The defaults with some values laid over them, one after the other: overrides of one builder are kept in a hash map, so
/// that a table and a key inside it would win at random.
fn with_defaults<'a, T: Serialize + DeserializeOwned + Default>(
    set: impl IntoIterator<Item = (&'a String, &'a Value)>,
) -> Result<T, config::ConfigError> {
    let mut whole = Config::try_from(&T::default())?;
    for (key, value) in set {
        whole = Config::builder().add_source(whole).set_override(key, value.clone())?.build()?;
    }
    whole.try_deserialize()
}

/// JSON as TOML writes it inside one line.
fn inline_table(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Object(fields) => {
            let parts: Vec<String> = fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| format!("{key} = {}", inline_table(value)))
                .collect();
            format!("{{ {} }}", parts.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Debug, serde::Serialize, serde::Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        threads: Option<usize>,
        slots: u32,
        pod: String,
        http: Option<std::net::SocketAddr>,
    }

    impl Default for Sample {
        fn default() -> Sample {
            Sample { threads: None, slots: 8, pod: "pod".to_owned(), http: None }
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn read(text: &str) -> Layers {
        Layers::read(Some(file(text).path()), &keys::<Sample>().unwrap(), &[]).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_fill_the_rest() {
        let mut layers = read("slots = 4\nthreads = 3\n");
        layers.flag("slots", Some(16_u64)).flag("pod", None::<String>);
        let effective = layers.resolve::<Sample>().unwrap();
        assert_eq!(effective.options, Sample { threads: Some(3), slots: 16, ..Sample::default() });
        let printed = effective.print().unwrap();
        assert!(printed.contains("slots = 16  # flag"), "{printed}");
        assert!(printed.contains("threads = 3  # file"), "{printed}");
        assert!(printed.contains("pod = \"pod\"  # default"), "{printed}");
        assert!(printed.contains("# http is not set"), "{printed}");
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let layers = read("slots = \"many\"\nhttp = \"nowhere\"\ncolour = \"red\"\n");
        let faults = layers.resolve::<Sample>().unwrap_err().to_string();
        for part in ["slots (file)", "http (file)", "colour (file): unknown key"] {
            assert!(faults.contains(part), "{faults}");
        }
    }

    #[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Nested {
        scale: Limits,
    }

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Limits {
        usd_per_hour_max: f64,
        usd_per_day_max: f64,
        pods_min: u32,
        pods_max: u32,
    }

    /// 19 of 40 starts kept the flag once: each start hashes again, so one process tries many times.
    #[test]
    fn environment_and_flags_win_over_a_table_of_the_file_at_every_start() {
        let known = keys::<Nested>().unwrap();
        let text = "[scale]\nusd_per_hour_max = 8.0\nusd_per_day_max = 60.0\npods_min = 3\npods_max = 9\n";
        for _ in 0..40 {
            let mut layers = Layers::read(Some(file(text).path()), &known, &[]).unwrap();
            layers.put(Origin::Environment, "scale.usd_per_day_max", Value::from("2"), &known);
            layers.put(Origin::Environment, "scale.pods_max", Value::from("2"), &known);
            layers.put(Origin::Flag, "scale.usd_per_hour_max", Value::from("1.5"), &known);
            layers.put(Origin::Flag, "scale.pods_max", Value::from("1"), &known);
            let effective = layers.resolve::<Nested>().unwrap();
            let expected = Limits { usd_per_hour_max: 1.5, usd_per_day_max: 2.0, pods_min: 3, pods_max: 1 };
            assert_eq!(effective.options.scale, expected);
            let printed = effective.print().unwrap();
            for part in ["# file, ", "scale.usd_per_day_max: environment", "scale.pods_max: flag"] {
                assert!(printed.contains(part), "{printed}");
            }
        }
    }

    #[test]
    fn numbers_in_the_environment_are_texts_and_are_read_as_numbers() {
        let mut layers = read("");
        layers.put(Origin::Environment, "slots", Value::from("12"), &keys::<Sample>().unwrap());
        layers.put(Origin::Environment, "pod", Value::from("17"), &keys::<Sample>().unwrap());
        let options = layers.resolve::<Sample>().unwrap().options;
        assert_eq!((options.slots, options.pod.as_str()), (12, "17"));
    }

    /// Variables of the commands' flags are in the same environment, and no service may refuse them.
    #[test]
    fn no_variable_of_a_command_is_unknown_to_a_service() {
        use clap::CommandFactory as _;
        fn variables(command: &clap::Command, found: &mut Vec<String>) {
            let own = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
            found.extend(own.map(str::to_owned));
            command.get_subcommands().for_each(|inner| variables(inner, found));
        }
        let mut found = vec![crate::launch::bundle::VARIABLE.to_owned()];
        variables(&crate::args::Arguments::command(), &mut found);
        let mut known = keys::<NatsOptions>().unwrap();
        known.extend(keys::<ternfleet_coordinator::Options>().unwrap());
        known.extend(keys::<ternfleet_worker::Options>().unwrap());
        let unknown = |variable: &&String| {
            let key = variable.strip_prefix(PREFIX).map(str::to_lowercase);
            key.is_some_and(|key| !known.contains(&key) && !OTHER_VARIABLES.contains(&key.as_str()))
        };
        assert!(found.len() > 10);
        assert_eq!(found.iter().filter(unknown).collect::<Vec<_>>(), [""; 0]);
    }
}
