//! Looking at a server without changing it: what `ternfleet doctor` asks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{NatsBus, stream};
use crate::bus::{BusError, Result};
use crate::table::StreamSpec;

/// What JetStream says of this account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountFacts {
    pub streams: u64,
    pub storage_bytes: u64,
    /// Largest storage of this account in bytes; `None` when only the disk bounds it.
    pub storage_limit_bytes: Option<u64>,
}

/// A stream as it is, held against the table.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamFindings {
    pub messages: u64,
    pub bytes: u64,
    pub replicas: u64,
    /// Settings that are not as the table has them: name, value found, value wanted. Replicas are left to the operator.
    pub differences: Vec<(String, Value, Value)>,
    /// The server's own clock, as RFC 3339, when it answered.
    pub server_time: Option<String>,
}

impl NatsBus {
    /// What this account may keep and does keep.
    ///
    /// # Errors
    /// [`BusError`] as JetStream refuses.
    pub async fn account_facts(&self) -> Result<AccountFacts> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            storage: u64,
            #[serde(default)]
            streams: u64,
            limits: Limits,
        }
        #[derive(Deserialize)]
        struct Limits {
            #[serde(default)]
            max_storage: i64,
        }
        let info: Info = self.api("INFO", &json!({}), "the account").await?;
        Ok(AccountFacts {
            streams: info.streams,
            storage_bytes: info.storage,
            storage_limit_bytes: u64::try_from(info.limits.max_storage).ok().filter(|limit| *limit > 0),
        })
    }

    /// `None` when there is no such stream.
    ///
    /// # Errors
    /// [`BusError`] as JetStream refuses.
    pub async fn inspect_stream(&self, spec: &StreamSpec) -> Result<Option<StreamFindings>> {
        let call = format!("STREAM.INFO.{}", spec.name);
        let info: Value = match self.api(&call, &json!({}), &format!("stream {}", spec.name)).await {
            Ok(info) => info,
            Err(BusError::NotFound(_)) => return Ok(None),
            Err(other) => return Err(other),
        };
        let found = &info["config"];
        let wanted = stream::configuration(spec);
        let differences = wanted
            .as_object()
            .into_iter()
            .flatten()
            // How often it is stored, and how much of the disk it may take, is the operator's to say.
            .filter(|(name, _)| !["num_replicas", "max_bytes"].contains(&name.as_str()))
            .filter(|(name, want)| !same(found.get(name.as_str()), want))
            .map(|(name, want)| {
                (name.clone(), found.get(name.as_str()).cloned().unwrap_or(Value::Null), want.clone())
            })
            .collect();
        Ok(Some(StreamFindings {
            messages: info["state"]["messages"].as_u64().unwrap_or(0),
            bytes: info["state"]["bytes"].as_u64().unwrap_or(0),
            replicas: found["num_replicas"].as_u64().unwrap_or(1),
            differences,
            server_time: info["ts"].as_str().map(str::to_owned),
        }))
    }
}

/// The server leaves out what is at its zero.
fn same(found: Option<&Value>, want: &Value) -> bool {
    match found {
        Some(found) => found == want,
        None => matches!(want.as_i64(), Some(0 | -1)) || *want == json!(false) || want.is_null(),
    }
}
