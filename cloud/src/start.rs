//! How a pod starts that has no image of ours: a stock image, and a script that fetches the static binary.

/// Has a shell, curl and certificates, and runs as root. Any other image that has these will do.
pub const STOCK_IMAGE: &str = "docker.io/library/buildpack-deps:bookworm-curl";

/// Run by the stock image; its variables are explained in it.
pub const SCRIPT: &str = include_str!("start.sh");

/// Entry point and command that fetch the program and run it with these arguments. The image's own are replaced, so
/// that it does not matter what they are.
pub fn command(arguments: &[&str]) -> (Vec<String>, Vec<String>) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut command = words(&[SCRIPT, "ternfleet-start"]);
    command.extend(words(arguments));
    (words(&["/bin/sh", "-c"]), command)
}
