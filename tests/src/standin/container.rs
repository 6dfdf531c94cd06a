//! One pod's container: the image's root file system in namespaces of its own, as the image's user, with the order's
//! environment, command and mounts.
//!
//! The root is made of this machine's `/usr`, read-only, and fresh folders: what a small image of the same distribution
//! holds. A stock image, for which only a shell, curl and certificates are promised, gets nothing else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::network::Link;

/// An image by what a container of it starts.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Numbers of user and group.
    pub user: (u32, u32),
    pub env: Vec<(String, String)>,
    pub workdir: String,
    /// Files of this machine, and where they are in the image.
    pub files: Vec<(PathBuf, String)>,
    /// Folders, with their owner.
    pub folders: Vec<(String, u32)>,
    /// Besides root.
    pub users: Vec<User>,
    /// Ports that it says it answers on; nothing depends on them.
    pub exposed: Vec<u16>,
}

/// A user of an image, and the group of the same name and number.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub home: String,
}

/// What is started.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub image: Image,
    pub hostname: String,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Folders of this machine, and where they are mounted: owned by root, as the provider's are.
    pub mounts: Vec<(PathBuf, String)>,
    /// They can be read alone.
    pub read_only: bool,
}

/// Makes the root and becomes the container's first process. Arguments: the root, its host name, user, working folder,
/// then the list of files, folders and mounts up to `--`, then environment and command.
const ENTER: &str = r#"
set -e
root=$0 hostname=$1 user=$2 workdir=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root"/usr "$root"/etc "$root"/proc "$root"/dev "$root"/root "$root"/var/tmp "$root"/run
mkdir -m 1777 "$root"/tmp
mount --bind /usr "$root/usr"
mount -o remount,bind,ro "$root/usr"
for folder in bin sbin lib lib64; do
  if [ -L "/$folder" ]; then cp -P "/$folder" "$root/$folder"
  elif [ -d "/$folder" ]; then mkdir "$root/$folder"; mount --bind "/$folder" "$root/$folder"
  fi
done
for part in ssl ca-certificates alternatives ld.so.cache nsswitch.conf; do
  [ ! -e "/etc/$part" ] || cp -R "/etc/$part" "$root/etc/"
done
printf 'root:x:0:0::/root:/bin/sh\n' > "$root/etc/passwd"
printf 'root:x:0:\n' > "$root/etc/group"
printf '127.0.0.1 localhost %s\n' "$hostname" > "$root/etc/hosts"
mount -t proc proc "$root/proc"
for device in null zero full random urandom; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
hostname "$hostname" 2>/dev/null || true
while [ "$1" != "--" ]; do
  case $1 in
    file)
      # What is in this machine's own folder of that name is not in the image.
      at=$(dirname "$root$3")
      while [ ! -d "$at" ]; do at=$(dirname "$at"); done
      [ -w "$at" ] || mount -t tmpfs -o mode=755 tmpfs "$at"
      mkdir -p "$(dirname "$root$3")"; : > "$root$3"; mount --bind "$2" "$root$3" ;;
    user) printf '%s\n' "$2" >> "$root/etc/passwd"; printf '%s\n' "$3" >> "$root/etc/group" ;;
    folder) mkdir -p "$root$3"; chown "$2:$2" "$root$3" ;;
    mount) mkdir -p "$root$3"; mount --bind "$2" "$root$3" ;;
    mount-read-only) mkdir -p "$root$3"; mount --bind "$2" "$root$3"; mount -o remount,bind,ro "$root$3" ;;
  esac
  shift 3
done
shift
mkdir -p "$root$workdir"
exec env -i "$(command -v chroot)" --userspec="$user" "$root" /bin/sh -c 'cd "$0" && exec env -i "$@"' "$workdir" "$@"
"#;

impl Container {
    /// Starts it. What it says goes to the file.
    ///
    /// # Errors
    /// When no process can be made.
    pub(super) fn start(&self, link: &Link, root: &Path, log: &Path) -> anyhow::Result<Child> {
        std::fs::create_dir_all(root)?;
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let (uid, gid) = self.image.user;
        let workdir = if self.image.workdir.is_empty() { "/" } else { &self.image.workdir };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &link.namespace]);
        command.args([
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--uts",
            "--ipc",
            "--kill-child",
            "--propagation",
        ]);
        command.args(["private", "sh", "-c", ENTER]).arg(root);
        command.args([self.hostname.as_str(), &format!("{uid}:{gid}"), workdir]);
        for User { name, uid, home } in &self.image.users {
            command.args([
                "user",
                &format!("{name}:x:{uid}:{uid}::{home}:/bin/sh"),
                &format!("{name}:x:{uid}:"),
            ]);
        }
        for (from, to) in &self.image.files {
            command.arg("file").arg(from).arg(to);
        }
        for (folder, owner) in &self.image.folders {
            command.args(["folder", &owner.to_string(), folder]);
        }
        for (from, to) in &self.mounts {
            command.arg(if self.read_only { "mount-read-only" } else { "mount" }).arg(from).arg(to);
        }
        command.arg("--");
        let path =
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        let user = self.image.users.iter().find(|user| user.uid == uid);
        let home = user.map_or(if uid == 0 { "/root" } else { "/" }, |user| &user.home);
        let home = ("HOME".to_owned(), home.to_owned());
        for (name, value) in [path, home].iter().chain(&self.image.env).chain(&self.env) {
            command.arg(format!("{name}={value}"));
        }
        command.args(&self.command);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("cannot run ip")
    }
}
