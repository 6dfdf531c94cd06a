//! An image as a target of a Dockerfile describes it: user, folders, entry point and what else a container of it shows.
//!
//! Nothing is built. Packages are those of this machine, and what another stage made comes from a folder. A line that is
//! not understood is an error: an image that is not the one described would prove nothing.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::container::{Image, User};

/// A stage: what it is based on, its name, its lines.
struct Stage<'a> {
    from: &'a str,
    name: &'a str,
    lines: Vec<(&'a str, &'a str)>,
}

impl Image {
    /// The image of one target. `built` holds the files that are copied from other stages, by their names alone.
    ///
    /// # Errors
    /// When there is no such target, or a line of it says something that is not understood here.
    pub fn of_dockerfile(text: &str, target: &str, built: &Path) -> anyhow::Result<Image> {
        let joined = joined(text);
        let stages = stages(&joined)?;
        let stage = |name: &str| stages.iter().find(|stage| stage.name == name);
        let mut chain = vec![stage(target).with_context(|| format!("there is no target {target:?}"))?];
        while let Some(base) = chain.last().and_then(|last| stage(last.from)) {
            chain.push(base);
        }
        let base = chain.last().map_or("", |stage| stage.from);
        if !base.starts_with("docker.io/library/debian:") {
            bail!("{base:?} is no base that this machine's files can stand for");
        }
        let mut image = Image::default();
        for (word, rest) in chain.iter().rev().flat_map(|stage| &stage.lines) {
            image.apply(word, rest, built).with_context(|| format!("{word} {rest}"))?;
        }
        Ok(image)
    }

    fn apply(&mut self, word: &str, rest: &str, built: &Path) -> anyhow::Result<()> {
        match word {
            "RUN" => rest.split("&&").try_for_each(|command| self.run(command.trim()))?,
            "COPY" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                let [stage, from, to] = words[..] else { bail!("three words are understood") };
                if !stage.starts_with("--from=") {
                    bail!("a copy of this folder is not understood");
                }
                let name = Path::new(from).file_name().and_then(|name| name.to_str()).context("no file")?;
                let file = built.join(name);
                if !file.is_file() {
                    bail!("there is no {}", file.display());
                }
                let to = if to.ends_with('/') { format!("{to}{name}") } else { to.to_owned() };
                self.files.push((file, to));
            }
            "USER" => {
                let user: u32 = rest.parse().context("the provider and Kubernetes want a number")?;
                self.user = (user, user);
            }
            "WORKDIR" => rest.clone_into(&mut self.workdir),
            "EXPOSE" => self.exposed.push(rest.parse()?),
            "STOPSIGNAL" => {}
            // A new entry point drops the command of the base.
            "ENTRYPOINT" => {
                self.entrypoint = serde_json::from_str(rest)?;
                self.cmd.clear();
            }
            "CMD" => self.cmd = serde_json::from_str(rest)?,
            _ => bail!("it is not understood"),
        }
        Ok(())
    }

    fn run(&mut self, command: &str) -> anyhow::Result<()> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["apt-get", ..] | ["rm", "-rf", "/var/lib/apt/lists/*"] => {}
            ["useradd", "--uid", uid, "--home-dir", home, "--create-home", name] => {
                let uid = uid.parse()?;
                self.users.push(User { name: name.to_owned(), uid, home: home.to_owned() });
                self.folders.push((home.to_owned(), uid));
            }
            ["install", "--directory", owner, folder] => {
                let owner = owner.strip_prefix("--owner=").context("no owner")?.parse()?;
                self.folders.push((folder.to_owned(), owner));
            }
            _ => bail!("{command:?} is not understood"),
        }
        Ok(())
    }
}

/// Without comments, and each instruction on one line.
fn joined(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect::<String>().replace("\\\n", " ")
}

fn stages(text: &str) -> anyhow::Result<Vec<Stage<'_>>> {
    let mut stages: Vec<Stage<'_>> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (word, rest) = line.split_once(' ').with_context(|| format!("{line:?} is no instruction"))?;
        let rest = rest.trim();
        if word == "FROM" {
            let (from, name) = rest.split_once(" AS ").with_context(|| format!("{line:?} has no name"))?;
            stages.push(Stage { from, name, lines: Vec::new() });
        } else {
            let last = stages.last_mut().with_context(|| format!("{line:?} is in no stage"))?;
            last.lines.push((word, rest));
        }
    }
    Ok(stages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_its_base_and_its_own_lines_and_what_is_not_understood_is_an_error() {
        let built = tempfile::tempdir().unwrap();
        std::fs::write(built.path().join("program"), "").unwrap();
        let text = "# a comment\nFROM docker.io/library/debian:bookworm-slim AS base\nRUN apt-get update \\\n # inside\n \
                    && useradd --uid 7 --home-dir /d --create-home me \\\n && install --directory --owner=7 /m\n\
                    COPY --from=build /out/program /usr/local/bin/\nUSER 7\nWORKDIR /d\nEXPOSE 80\nENTRYPOINT [\"a\"]\nCMD [\"b\"]\n\
                    FROM base AS one\nENTRYPOINT [\"program\", \"x\"]\n";
        let image = Image::of_dockerfile(text, "one", built.path()).unwrap();
        assert_eq!(image.entrypoint, ["program", "x"]);
        assert!(image.cmd.is_empty());
        assert_eq!((image.user, image.workdir.as_str(), &image.exposed[..]), ((7, 7), "/d", &[80][..]));
        assert_eq!(image.folders, [("/d".to_owned(), 7), ("/m".to_owned(), 7)]);
        assert_eq!(image.files[0].1, "/usr/local/bin/program");
        assert_eq!(Image::of_dockerfile(text, "base", built.path()).unwrap().cmd, ["b"]);
        assert!(Image::of_dockerfile(text, "two", built.path()).is_err());
        for (from, to) in [
            ("USER 7", "USER me"),
            ("WORKDIR", "VOLUME"),
            ("/out/program", "/out/other"),
            ("debian", "alpine"),
        ] {
            assert!(Image::of_dockerfile(&text.replace(from, to), "one", built.path()).is_err(), "{to}");
        }
    }
}
