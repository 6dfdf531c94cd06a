//! One object of S3, Google Cloud Storage or Azure, read in ranges and written when it is complete.
//!
//! Credentials come from each store's usual environment, and no message shows them.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, GetOptions, MultipartUpload, ObjectStore, ObjectStoreExt, RetryConfig, aws, azure, gcp,
};
use tempfile::{NamedTempFile, TempDir, TempPath};
use tokio::io::AsyncReadExt;

use super::wire::Wire;
use crate::output::{Existing, WholeFile};

const PART_BYTES: u64 = 8 << 20;
/// Parts that are under way at the same time.
const PARTS: usize = 4;
/// A store accepts at most 10,000 parts of one object.
const PARTS_MAX: u64 = 9_000;
/// How often a part that came short is asked for again.
const TRIES: usize = 5;
/// A request is repeated for so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// An object in a store.
pub(crate) struct Remote {
    store: Box<dyn ObjectStore>,
    key: Key,
    /// `s3://bucket/key`.
    place: String,
    /// What opens the store, for messages.
    variables: &'static str,
    /// Where results are written until they are complete.
    folder: TempDir,
}

/// Never shows credentials.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Remote {
    /// `rest` is what follows `://`; `None` for what is no object store.
    pub(super) fn open(scheme: &str, rest: &str) -> anyhow::Result<Option<Remote>> {
        let place = format!("{scheme}://{rest}");
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let retry = retry();
        let (store, variables): (object_store::Result<Box<dyn ObjectStore>>, _) = match scheme {
            "s3" => {
                let builder = aws::AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
                let store = builder.with_http_connector(Wire).build();
                (store.map(|store| Box::new(store) as _), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
            }
            "gs" => {
                let builder = gcp::GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
                let store = builder.with_retry(retry).with_http_connector(Wire).build();
                (store.map(|store| Box::new(store) as _), "GOOGLE_APPLICATION_CREDENTIALS")
            }
            "az" => {
                let builder = azure::MicrosoftAzureBuilder::from_env().with_container_name(bucket);
                let store = builder.with_retry(retry).with_http_connector(Wire).build();
                let variables = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY";
                (store.map(|store| Box::new(store) as _), variables)
            }
            _ => return Ok(None),
        };
        ensure!(!bucket.is_empty() && !key.is_empty(), "{place} must have the form {scheme}://BUCKET/KEY");
        let key = Key::parse(key).map_err(|fault| anyhow!("{place}: {fault}"))?;
        let store = store.map_err(|fault| anyhow!("{place}: {} (see {variables})", first_line(&fault)))?;
        Remote::of(store, key, place, variables).map(Some)
    }

    fn of(
        store: Box<dyn ObjectStore>,
        key: Key,
        place: String,
        variables: &'static str,
    ) -> anyhow::Result<Remote> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        Ok(Remote { store, key, place, variables, folder })
    }

    /// Reads the whole object into a temporary file. It must not change meanwhile.
    pub(super) async fn fetch(&self) -> anyhow::Result<TempPath> {
        let facts = self.store.head(&self.key).await.map_err(|fault| self.fault(&fault))?;
        eprintln!("fetching {} ({})", self.place, crate::fetch::size(facts.size));
        let file = NamedTempFile::new().context("cannot write a temporary file")?;
        let mut out = file.reopen().context("cannot write a temporary file")?;
        let starts = (0..facts.size).step_by(PART_BYTES as usize);
        let part = |start: u64| self.part(start..(start + PART_BYTES).min(facts.size), facts.e_tag.clone());
        let mut parts = futures::stream::iter(starts).map(part).buffered(PARTS);
        while let Some(bytes) = parts.try_next().await? {
            out.write_all(&bytes).context("cannot write a temporary file")?;
        }
        Ok(file.into_temp_path())
    }

    async fn part(&self, range: std::ops::Range<u64>, tag: Option<String>) -> anyhow::Result<Vec<u8>> {
        let wanted = range.end - range.start;
        let begun = Instant::now();
        for _ in 0..TRIES {
            let range = Some(range.clone().into());
            let options = GetOptions { if_match: tag.clone(), range, ..GetOptions::default() };
            match self.store.get_opts(&self.key, options).await {
                Ok(got) => match got.bytes().await {
                    Ok(bytes) if bytes.len() as u64 == wanted => return Ok(bytes.into()),
                    Ok(_) | Err(_) => {}
                },
                // Another range than was asked for, for one. What the store refuses, it refuses again.
                Err(object_store::Error::Generic { .. }) if begun.elapsed() < PATIENCE => {}
                Err(fault) => return Err(self.fault(&fault)),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        bail!("{} does not send bytes {} to {} completely", self.place, range.start, range.end)
    }

    /// Begins a file that [`Remote::put`] sends.
    pub(crate) async fn draft(&self, existing: Existing) -> anyhow::Result<WholeFile> {
        if existing == Existing::Refused {
            match self.store.head(&self.key).await {
                Ok(_) => {
                    bail!("{} exists: choose another name, or overwrite it with --force", self.place)
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(fault) => return Err(self.fault(&fault)),
            }
        }
        WholeFile::create(&self.folder.path().join("results"), Existing::Refused)
    }

    /// Sends a complete file. The object appears when all of it has arrived.
    pub(crate) async fn put(self, file: PathBuf) -> anyhow::Result<PathBuf> {
        let size = std::fs::metadata(&file)?.len();
        let fault = |fault: object_store::Error| self.fault(&fault);
        if size <= PART_BYTES {
            let content = std::fs::read(&file)?;
            self.store.put(&self.key, content.into()).await.map_err(fault)?;
        } else {
            let mut upload = self.store.put_multipart(&self.key).await.map_err(fault)?;
            if let Err(error) = self.send(&file, size, &mut *upload).await {
                // What has arrived would be paid for.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
        Ok(Path::new(&self.place).to_owned())
    }

    async fn send(&self, file: &Path, size: u64, upload: &mut dyn MultipartUpload) -> anyhow::Result<()> {
        let part_bytes = PART_BYTES.max(size.div_ceil(PARTS_MAX));
        let mut content = tokio::fs::File::from_std(File::open(file)?);
        let mut left = size;
        while left > 0 {
            let mut part = vec![0; usize::try_from(part_bytes.min(left))?];
            content.read_exact(&mut part).await.context("cannot read the results")?;
            left -= part.len() as u64;
            upload.put_part(part.into()).await.map_err(|fault| self.fault(&fault))?;
        }
        upload.complete().await.map_err(|fault| self.fault(&fault)).map(drop)
    }

    /// What a person can do about it. Replies of stores are not shown whole: they may repeat what was signed.
    fn fault(&self, fault: &object_store::Error) -> anyhow::Error {
        use object_store::Error as E;
        let Remote { place, variables, .. } = self;
        match fault {
            E::NotFound { .. } => anyhow!("{place} does not exist"),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                anyhow!("{place}: access is refused; check {variables} in the environment")
            }
            E::Precondition { .. } => anyhow!("{place} changed while it was read: run the command again"),
            other => anyhow!("{place}: {}", first_line(other)),
        }
    }
}

fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 6,
        retry_timeout: PATIENCE,
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            ..BackoffConfig::default()
        },
    }
}

/// The beginning of a message.
fn first_line(fault: &object_store::Error) -> String {
    let text = fault.to_string();
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests;
