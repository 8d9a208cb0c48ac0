//! Control groups that limit memory, of version 1 and 2 (Linux, Documentation/admin-guide/cgroup-v1/memory.rst and
//! cgroup-v2.rst). The page cache that a process fills counts as its group's, so that a file that is mapped has to fit as
//! well.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A group of its own for one run; removed when it is dropped, after its processes.
pub struct Group {
    folder: PathBuf,
    files: &'static Files,
}

/// What a version calls its files.
struct Files {
    version: &'static str,
    limit: &'static str,
    /// Memory and swap together, or swap alone.
    swap: &'static str,
    swap_is_sum: bool,
    peak: &'static str,
}

const V1: Files = Files {
    version: "cgroup v1",
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    swap_is_sum: true,
    peak: "memory.max_usage_in_bytes",
};

const V2: Files = Files {
    version: "cgroup v2",
    limit: "memory.max",
    swap: "memory.swap.max",
    swap_is_sum: false,
    peak: "memory.peak",
};

impl Group {
    /// Makes a group whose processes have `bytes` of memory, the page cache included, and no swap.
    pub fn new(bytes: u64) -> Result<Group, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
        let mut reasons = Vec::new();
        for (parent, files) in parents(&own, Path::new("/sys/fs/cgroup")) {
            match Group::within(&parent, files, bytes) {
                Ok(group) => return Ok(group),
                Err(e) => reasons.push(format!("{}: {e}", parent.display())),
            }
        }
        let reasons = if reasons.is_empty() { "no group has memory".to_owned() } else { reasons.join("; ") };
        Err(format!(
            "no control group can limit memory ({reasons}); RLIMIT_AS is no help, as it counts whole maps"
        ))
    }

    fn within(parent: &Path, files: &'static Files, bytes: u64) -> io::Result<Group> {
        if files.version == V2.version {
            // Fails where it is on already and may not be changed; what counts is whether the files are there.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let folder = parent.join(format!("fonio-bench-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let group = Group { folder, files };
        fs::write(group.folder.join(files.limit), bytes.to_string())?;
        let swap = if files.swap_is_sum { bytes } else { 0 };
        // Kernels without swap accounting do not have the file.
        let _ = fs::write(group.folder.join(files.swap), swap.to_string());
        Ok(group)
    }

    /// What limits.
    pub fn version(&self) -> &'static str {
        self.files.version
    }

    /// The file that takes the number of a process that shall belong to the group.
    pub fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// The most bytes that the group had, if the kernel keeps that.
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.folder.join(self.files.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel takes a moment to see that the last process has gone.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} could not be removed", self.folder.display());
    }
}

/// Groups under which one may be made, by what `/proc/self/cgroup` says. In version 2 a group with processes has no
/// groups with limits below it, unless it is the root: the one above is tried as well.
fn parents(own: &str, mount: &Path) -> Vec<(PathBuf, &'static Files)> {
    let mut parents = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|c| c == "memory") {
            parents.push((mount.join("memory").join(path), &V1));
        } else if controllers.is_empty() && mount.join("cgroup.controllers").exists() {
            let group = mount.join(path);
            let above = group.parent().filter(|_| group != mount).map(|p| (p.to_path_buf(), &V2));
            parents.push((group, &V2));
            parents.extend(above);
        }
    }
    parents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_are_found() {
        let mount = tempfile::tempdir().unwrap();
        let found = |own| -> Vec<(String, &str)> {
            let relative = |p: PathBuf| p.strip_prefix(mount.path()).unwrap().to_str().unwrap().to_owned();
            parents(own, mount.path()).into_iter().map(|(p, f)| (relative(p), f.version)).collect()
        };
        let v1 = "8:memory:/a/b\n3:cpu,cpuacct:/\n0::/unified\n";
        assert_eq!(found(v1), [("memory/a/b".to_owned(), "cgroup v1")], "version 2 has no memory there");
        std::fs::write(mount.path().join("cgroup.controllers"), "memory").unwrap();
        let v2 = ["x/y".to_owned(), "x".to_owned()].map(|p| (p, "cgroup v2"));
        assert_eq!(found("0::/x/y\n"), v2);
        assert_eq!(found("0::/\n"), [(String::new(), "cgroup v2")], "nothing is above the root");
    }

    #[test]
    fn a_group_limits_and_goes() {
        // Only where one may be made: as root, mostly.
        let Ok(group) = Group::new(64 << 20) else { return };
        let limit = std::fs::read_to_string(group.folder.join(group.files.limit)).unwrap();
        assert_eq!(limit.trim(), (64 << 20).to_string());
        let folder = group.folder.clone();
        drop(group);
        assert!(!folder.exists());
    }
}
