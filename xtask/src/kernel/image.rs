//! An unpacked kernel, and the initramfs that it starts with.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{archive, emptied, output};
use crate::{guest, workspace::run};

/// Modules without which the guest has no root file system; the others come from there, on demand.
const MODULES: [&str; 4] = ["virtio_pci", "9p", "9pnet_virtio", "overlay"];

/// A kernel that has been unpacked.
pub(super) struct Kernel {
    /// What its packages have, from `/` on.
    root: PathBuf,
    /// As `uname -r` says it.
    release: String,
}

impl Kernel {
    /// The newest kernel of this version that the archive has; an unpacked one is kept and used again.
    pub(super) fn get(kernels: &Path, version: &str) -> Result<Self> {
        let root = kernels.join(version);
        if !root.exists() {
            unpack(kernels, version, &root)?;
        }
        let releases = root.join("lib/modules");
        let release = fs::read_dir(&releases).with_context(|| releases.display().to_string())?.next();
        let release = release.with_context(|| format!("{} is empty", releases.display()))??.file_name();
        Ok(Self { release: release.to_string_lossy().into_owned(), root })
    }

    pub(super) fn is_unpacked(kernels: &Path, version: &str) -> bool {
        kernels.join(version).exists()
    }

    pub(super) fn release(&self) -> &str {
        &self.release
    }

    /// What the boot loader starts.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let places =
            [self.root.join(format!("boot/vmlinuz-{}", self.release)), self.modules().join("vmlinuz")];
        places.into_iter().find(|place| place.exists()).with_context(|| {
            format!("{} has no vmlinuz: remove it to have it downloaded again", self.root.display())
        })
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The files of [`MODULES`] and what they need, each after what it needs.
    fn early_modules(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in MODULES {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("--dirname").arg(&self.root).args(["--set-version", &self.release]);
            for line in output(modprobe.args(["--show-depends", module]))?.lines() {
                // "insmod FILE"; "builtin NAME" for what the kernel has in itself.
                let file = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()));
                files.extend(file.filter(|file| !files.contains(file)));
            }
        }
        Ok(files)
    }

    /// The file of an initramfs that ends in `script`; see [`guest::INIT`].
    pub(super) fn pack_initramfs(&self, script: &str) -> Result<PathBuf> {
        let files = self.root.join("initramfs");
        emptied(&files)?;
        // Mount points, and `bin` and `modules` to be filled.
        for directory in ["bin", "modules", "host", "memory", "sysroot"] {
            fs::create_dir(files.join(directory))?;
        }
        let busybox = output(Command::new("sh").args(["-c", "command -v busybox"]))?;
        fs::copy(busybox.trim(), files.join("bin/busybox"))?;
        for (place, module) in self.early_modules()?.iter().enumerate() {
            unpack_module(module, &files.join(format!("modules/{place:02}.ko")))
                .with_context(|| module.display().to_string())?;
        }
        fs::write(files.join("init"), guest::INIT)?;
        fs::write(files.join("script"), script)?;
        let archive = self.root.join("initramfs.cpio");
        let pack =
            "chmod 755 init && find . | cpio --quiet --create --format=newc --owner=0:0 >../initramfs.cpio";
        run(Command::new("sh").args(["-ec", pack]).current_dir(&files))?;
        Ok(archive)
    }
}

/// Copies a module as busybox's `insmod` takes it: that one decompresses nothing.
fn unpack_module(module: &Path, to: &Path) -> Result<()> {
    match module.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => {
            fs::copy(module, to)?;
        }
        Some("xz") => run(Command::new("busybox").arg("xzcat").arg(module).stdout(File::create(to)?))?,
        _ => bail!("neither .ko nor .ko.xz: this compression is not known here"),
    }
    Ok(())
}

/// Downloads the packages and unpacks them; `root` appears only when all is there.
fn unpack(kernels: &Path, version: &str, root: &Path) -> Result<()> {
    let unfinished = kernels.join(format!("{version}.unfinished"));
    let packages = unfinished.join("packages");
    emptied(&unfinished)?;
    fs::create_dir(&packages)?;
    archive::download(kernels, version, &packages)?;
    for package in fs::read_dir(&packages)? {
        run(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&unfinished))?;
    }
    fs::remove_dir_all(&packages)?;
    // Since Debian 13 the packages say `/usr/lib`, while modprobe and the guest ask for `/lib`.
    if !unfinished.join("lib").exists() {
        symlink("usr/lib", unfinished.join("lib"))?;
    }
    for release in fs::read_dir(unfinished.join("lib/modules"))? {
        run(Command::new("depmod").arg("--basedir").arg(&unfinished).arg(release?.file_name()))?;
    }
    fs::rename(&unfinished, root).with_context(|| root.display().to_string())
}
