//! The model of a pod: found in one of its folders, or fetched, resumed and checked as `model pull` does it.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use ternfleet_engine::gguf;
use ternfleet_engine::model_file;
use ternfleet_text::manifest::FILE_NAME;

use super::Pod;
use super::places::Places;
use crate::commands::model::pull::examine;
use crate::fetch::{Source, Wanted, sha256_of, small};
use crate::models::{self, Known, Store};

/// Of an unknown size, so much room is looked for.
const BYTES_GUESSED: u64 = 2 << 30;
const CONNECTIONS: usize = 4;
const RETRIES: u32 = 8;

/// What is wanted.
struct Target {
    known: Option<Known>,
    sha256: String,
    bytes: Option<u64>,
    /// Its name in a folder.
    file: String,
}

impl Pod {
    pub(super) fn find_model(&self, places: &Places) -> anyhow::Result<PathBuf> {
        let given = self.model.as_deref().map(Path::new).filter(|path| path.is_file());
        if let Some(path) = given {
            if let Some(wanted) = &self.model_sha256 {
                let is = sha256_of(path)?;
                ensure!(is == *wanted, "{} is not the expected model: its SHA-256 is {is}", path.display());
            }
            return Ok(path.to_owned());
        }
        let target = self.target(places)?;
        if let Some(here) = target.here(places)? {
            return Ok(here);
        }
        self.fetch(&target, places)
    }

    fn target(&self, places: &Places) -> anyhow::Result<Target> {
        let name = self.model.as_deref().filter(|name| !name.is_empty());
        let known = match (name, &self.manifest_url) {
            (_, Some(url)) => {
                let source = self.source(url)?;
                let text = small(&source)
                    .with_context(|| format!("the manifest at {url} could not be downloaded"))?;
                Some(Known::parse(&text, url)?)
            }
            // A folder of models may hold manifests of its own; the first writable place does as well as any.
            (Some(name), None) => Some(models::named(name, &Store::find(Some(&places.own()?))?)?),
            (None, None) => None,
        };
        if let Some(known) = &known
            && let Some(reason) = &known.manifest.not_runnable
        {
            anyhow::bail!("{} cannot be run: {reason}", known.name());
        }
        let source = known.as_ref().and_then(|known| known.manifest.source.as_ref());
        let sha256 = self.model_sha256.clone().or_else(|| source?.sha256.clone()).context(
            "no model is set: use TERNFLEET_MODEL (a name of `ternfleet model list`), or \
             TERNFLEET_MODEL_URL with TERNFLEET_MODEL_SHA256",
        )?;
        // Another digest than the manifest's is another file, of another size.
        let bytes =
            source.filter(|source| source.sha256.as_ref() == Some(&sha256)).and_then(|source| source.bytes);
        let file = source.map_or_else(|| "model.gguf".to_owned(), |source| source.file.clone());
        Ok(Target { known, sha256, bytes, file })
    }

    fn fetch(&self, target: &Target, places: &Places) -> anyhow::Result<PathBuf> {
        let own = target.known.as_ref().and_then(|known| known.manifest.source.as_ref()?.url.clone());
        let served = || {
            self.dist_url.as_ref().map(|dist| format!("{}/dist/{}", dist.trim_end_matches('/'), target.file))
        };
        let url = self
            .model_url
            .clone()
            .or(own)
            .or_else(served)
            .context("the model has no download address: set TERNFLEET_MODEL_URL, or mount the file")?;
        let folder = places.with_room(target.bytes.unwrap_or(BYTES_GUESSED))?.join(target.folder());
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(&target.file);
        // Pods that share a volume do not write one file.
        let pod = std::env::var("TERNFLEET_POD").unwrap_or_default();
        let part = folder.join(format!("{}.{pod}.part", target.file));
        let source = self.source(&url)?;
        tracing::info!(host = source.host(), to = %folder.display(), "downloading the model");
        let wanted = Wanted {
            source: &source,
            sha256: Some(&target.sha256),
            bytes: target.bytes,
            connections: CONNECTIONS,
            retries: RETRIES,
            quiet: true,
        };
        let fetched = wanted.fetch(&part).context("the model could not be downloaded")?;
        match &target.known {
            Some(known) => examine(known, &fetched, &path)?,
            None => {
                let file = gguf::File::open(&fetched.path).context("the download is not a model file")?;
                let faults = model_file::examine(&path, &file, None).faults;
                ensure!(faults.is_empty(), "the model cannot be run: {}", faults.join("; "));
            }
        }
        if let Some(known) = &target.known {
            std::fs::write(folder.join(FILE_NAME), &known.text)
                .with_context(|| format!("cannot write in {}", folder.display()))?;
        }
        std::fs::rename(&fetched.path, &path)
            .with_context(|| format!("cannot move the model to {}", path.display()))?;
        crate::fetch::forget(&fetched.path);
        Ok(path)
    }

    /// The coordinator is shown this pod's token, which opens nothing else; the model's publisher perhaps one of its own.
    fn source(&self, url: &str) -> anyhow::Result<Source> {
        let is_ours = self.dist_url.as_ref().is_some_and(|dist| url.starts_with(dist.as_str()));
        match self.dist_token.clone().filter(|token| is_ours && !token.is_empty()) {
            Some(token) => Source::with_open_token(url, token),
            None => {
                let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
                Source::new(url, token, true)
            }
        }
    }
}

impl Target {
    /// Its own folder inside one of the places; the digest has been checked to be one.
    fn folder(&self) -> &str {
        &self.sha256[..16]
    }

    /// The file in one of the folders, if it is the right one. Others are left as they are.
    fn here(&self, places: &Places) -> anyhow::Result<Option<PathBuf>> {
        let name = self.known.as_ref().map(|known| known.name().to_owned());
        for place in places.all() {
            let inside = [Some(self.folder().to_owned()), name.clone(), Some(String::new())];
            for path in inside.into_iter().flatten().map(|folder| place.join(folder).join(&self.file)) {
                let Ok(facts) = std::fs::metadata(&path) else { continue };
                if !facts.is_file() || self.bytes.is_some_and(|bytes| bytes != facts.len()) {
                    continue;
                }
                match sha256_of(&path) {
                    Ok(sha256) if sha256 == self.sha256 => return self.beside(places, path).map(Some),
                    Ok(_) => {
                        tracing::warn!(file = %path.display(), "this file is not the expected model")
                    }
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "a file cannot be read"),
                }
            }
        }
        Ok(None)
    }

    /// A file without its manifest would split text by guessing. Where none can be put beside it, both are put elsewhere.
    fn beside(&self, places: &Places, path: PathBuf) -> anyhow::Result<PathBuf> {
        let Some(known) = &self.known else { return Ok(path) };
        if path.with_file_name(FILE_NAME).is_file() {
            return Ok(path);
        }
        if std::fs::write(path.with_file_name(FILE_NAME), &known.text).is_ok() {
            return Ok(path);
        }
        let folder = places.with_room(std::fs::metadata(&path)?.len())?.join(self.folder());
        let said = || format!("cannot copy {} to {}", path.display(), folder.display());
        std::fs::create_dir_all(&folder).with_context(said)?;
        std::fs::write(folder.join(FILE_NAME), &known.text).with_context(said)?;
        let copy = folder.join(&self.file);
        std::fs::copy(&path, &copy).with_context(said)?;
        Ok(copy)
    }
}
