//! The kernels of Debian's archive: which packages make one, and how they get here.
//!
//! The machine's package sources say where a mirror of Debian is. They have the kernels of one release; those of the
//! others come from the same mirror by an apt with lists and sources of its own below `target/kernels/apt`. So the
//! machine's configuration stays as it is, no root is needed, and what is trusted is the keyring that the machine
//! trusts for Debian.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{NEWEST, output};
use crate::workspace::{is_root, on_path, run};

/// What is asked of the mirror beside the machine's own releases: 6.1, 6.12 and the newest kernel.
const RELEASES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// The packages of a kernel, without its release: one until Debian 13, split since.
const PARTS: [&str; 4] = ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"];

/// A mirror of Debian.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    uri: String,
    /// The file that its signatures are checked with, if the source names one.
    keyring: Option<String>,
    /// The sources of the machine that are Debian's: the URI and the release of each.
    own: Vec<(String, String)>,
}

impl Mirror {
    /// From the machine's package sources.
    pub(crate) fn locate() -> Result<Self> {
        for program in ["apt-get", "dpkg-deb"] {
            ensure!(
                on_path(program),
                "the kernels come from Debian's archive, and there is no {program} here"
            );
        }
        let mut found = Self::parse(&index_targets()?);
        // Images of containers often come without lists, and only a list says whose it is.
        if found.is_none() && is_root() {
            run(Command::new("apt-get").args(["--quiet", "--quiet", "update"]))?;
            found = Self::parse(&index_targets()?);
        }
        let mut mirror = found.context(
            "the kernels come from Debian's archive, and the package sources of this system have no mirror of it \
             (none whose Release file has the origin and the label Debian)",
        )?;
        mirror.keyring = mirror.keyring.and_then(|entry| {
            let (file, number) = entry.rsplit_once(':')?;
            keyring(&fs::read_to_string(file).ok()?, file.ends_with(".sources"), number.parse().ok()?)
        });
        Ok(mirror)
    }

    /// Of [`index_targets`]; `keyring` is still the place of the source, FILE:NUMBER.
    fn parse(targets: &str) -> Option<Self> {
        let mut own = Vec::new();
        let mut mirror = None;
        for line in targets.lines() {
            let [origin, label, uri, release, entry] = line.split('|').collect::<Vec<_>>()[..] else {
                continue;
            };
            if origin != "Debian" {
                continue;
            }
            let source = (uri.to_owned(), release.to_owned());
            if !own.contains(&source) {
                own.push(source);
            }
            // Security updates and backports have labels of their own.
            if label == "Debian" && mirror.is_none() {
                mirror = Some((uri.to_owned(), Some(entry.to_owned())));
            }
        }
        let (uri, keyring) = mirror?;
        Some(Self { uri, keyring, own })
    }

    /// The content of a `sources.list`.
    fn sources(&self) -> String {
        let signed = self.keyring.as_ref().map(|file| format!(" signed-by={file}")).unwrap_or_default();
        let others = RELEASES.map(|release| (self.uri.clone(), release.to_owned()));
        let mut sources = self.own.clone();
        sources.extend(others.into_iter().filter(|source| !self.own.contains(source)));
        sources
            .iter()
            .map(|(uri, release)| format!("deb [arch=amd64 target=Packages{signed}] {uri} {release} main\n"))
            .collect()
    }
}

/// Downloads the packages of the newest kernel of a version into the directory; the names of them.
pub(crate) fn download(kernels: &Path, version: &str, into: &Path) -> Result<Vec<String>> {
    let configuration = configure(&kernels.join("apt"), &Mirror::locate()?)?;
    let apt = |program: &str| {
        let mut apt = Command::new(program);
        apt.arg("--config-file").arg(&configuration);
        apt
    };
    // A release that the mirror has not is no reason to do without the others; apt says what it misses.
    let _ = run(apt("apt-get").args(["--quiet", "--quiet", "update"]));
    let names = output(apt("apt-cache").args(["pkgnames", "linux-"]))?;
    let names: BTreeSet<_> = names.lines().collect();
    let image = newest(names.iter().copied(), version).with_context(|| {
        format!(
            "the mirror of Debian that this system uses has no kernel {version}; it has {}",
            versions(names.iter().copied()).join(", ")
        )
    })?;
    let packages = parts(image, &names);
    println!("setup: downloading from Debian's archive: {}", packages.join(", "));
    run(apt("apt-get").args(["--quiet", "--quiet", "download"]).args(&packages).current_dir(into))?;
    Ok(packages)
}

/// What apt knows of the machine's sources, a line each.
fn index_targets() -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(RELEASE)|$(SOURCESENTRY)";
    let mut targets = Command::new("apt-get");
    output(targets.args(["indextargets", "--format", format, "Created-By: Packages", "Target-Of: deb"]))
}

/// The keyring that a source names: the stanza of that number in a `.sources` file, or the line in a `.list`. None
/// if it names no file: apt then takes those it trusts for everything.
fn keyring(text: &str, stanzas: bool, number: usize) -> Option<String> {
    let value = if stanzas {
        let counts = |stanza: &&str| stanza.lines().any(|line| !line.starts_with('#') && line.contains(':'));
        let stanza = text.split("\n\n").filter(counts).nth(number.checked_sub(1)?)?;
        stanza.lines().find_map(|line| line.strip_prefix("Signed-By:"))?.trim()
    } else {
        let line = text.lines().nth(number.checked_sub(1)?)?;
        line.split(['[', ']', ' ']).find_map(|option| option.strip_prefix("signed-by="))?
    };
    value.starts_with('/').then(|| value.to_owned())
}

/// Makes an apt of its own; the file to start it with.
fn configure(directory: &Path, mirror: &Mirror) -> Result<PathBuf> {
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(directory.join(part)).with_context(|| directory.display().to_string())?;
    }
    fs::write(directory.join("sources.list"), mirror.sources())?;
    let place = directory.display();
    // The hooks of an update would refresh what belongs to the machine. apt's own user may not write here.
    let text = format!(
        r#"#clear APT::Update;
APT::Sandbox::User "root";
Dir::Cache "{place}/cache";
Dir::Etc::sourcelist "{place}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "{place}/lists";
"#
    );
    let configuration = directory.join("apt.conf");
    fs::write(&configuration, text)?;
    Ok(configuration)
}

/// The name of the newest kernel package of a version such as 6.1 or 6.12.
fn newest<'a>(names: impl Iterator<Item = &'a str>, version: &str) -> Option<&'a str> {
    let of_version = |name: &&str| {
        kernel_version(name).is_some_and(|found| {
            let rest = if version == NEWEST { Some("") } else { found.strip_prefix(version) };
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+']))
        })
    };
    names.filter(of_version).max_by_key(|name| numbers(name))
}

/// The packages that belong to a kernel's `linux-image`, itself among them.
fn parts(image: &str, names: &BTreeSet<&str>) -> Vec<String> {
    let release = image.strip_prefix(PARTS[0]).unwrap_or(image);
    let parts = PARTS.map(|part| format!("{part}{release}"));
    parts.into_iter().filter(|part| names.contains(part.as_str())).collect()
}

/// Versions that [`newest`] knows, as one would ask for them.
fn versions<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let two = |name: &str| {
        let found = numbers(kernel_version(name)?);
        Some((*found.first()?, *found.get(1)?))
    };
    let versions: BTreeSet<_> = names.filter_map(two).collect();
    versions.iter().map(|(major, minor)| format!("{major}.{minor}")).collect()
}

/// `6.1.0-56` of `linux-image-6.1.0-56-amd64`; nothing of other flavours, unsigned kernels, release candidates and
/// meta packages.
fn kernel_version(package: &str) -> Option<&str> {
    let version = package.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
    let flavour = version.split('-').skip(1).any(|part| part.starts_with(|c: char| c.is_ascii_alphabetic()));
    let candidate = version.contains("~rc") || version.contains("-rc");
    (version.starts_with(|c: char| c.is_ascii_digit()) && !flavour && !candidate).then_some(version)
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 14] = [
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-57-amd64-unsigned",
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-57-rt-amd64",
        "linux-image-6.12.48+deb13-amd64",
        "linux-image-6.12.9+bpo-amd64",
        "linux-image-7.2.13+deb14-amd64",
        "linux-image-7.3~rc4-amd64",
        "linux-base-7.2.13+deb14-amd64",
        "linux-modules-7.2.13+deb14-amd64",
        "linux-modules-7.2.13+deb14-rt-amd64",
        "linux-image-amd64",
        "linux-image-6.1.0-57-arm64",
    ];

    #[test]
    fn newest_kernel_of_a_version() {
        assert_eq!(newest(NAMES.into_iter(), "6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "6.12"), Some("linux-image-6.12.48+deb13-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "6"), Some("linux-image-6.12.48+deb13-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "newest"), Some("linux-image-7.2.13+deb14-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "6.2"), None);
        assert_eq!(versions(NAMES.into_iter()), ["6.1", "6.12", "7.2"]);
    }

    #[test]
    fn split_kernels_are_complete() {
        let names = BTreeSet::from(NAMES);
        assert_eq!(parts("linux-image-6.1.0-56-amd64", &names), ["linux-image-6.1.0-56-amd64"]);
        assert_eq!(
            parts("linux-image-7.2.13+deb14-amd64", &names),
            [
                "linux-image-7.2.13+deb14-amd64",
                "linux-base-7.2.13+deb14-amd64",
                "linux-modules-7.2.13+deb14-amd64"
            ]
        );
    }

    const TARGETS: &str = "\
Other|Other|http://one.example/|stable|/etc/apt/sources.list:1
Debian|Debian-Security|http://two.example/security/|bookworm-security|/etc/apt/a.sources:2
Debian|Debian|http://two.example/debian/|bookworm|/etc/apt/a.sources:1
Debian|Debian|http://two.example/debian/|bookworm|/etc/apt/a.sources:1
Debian|Debian|http://three.example/debian/|trixie|/etc/apt/sources.list:2
$(ORIGIN)|$(LABEL)|http://four.example/debian/|sid|/etc/apt/sources.list:3
";

    #[test]
    fn the_mirror_is_the_machines_own() {
        let mut mirror = Mirror::parse(TARGETS).unwrap();
        assert_eq!(mirror.keyring.take().unwrap(), "/etc/apt/a.sources:1");
        let line =
            |uri: &str, release: &str| format!("deb [arch=amd64 target=Packages] {uri} {release} main\n");
        let wanted = [
            line("http://two.example/security/", "bookworm-security"),
            line("http://two.example/debian/", "bookworm"),
            line("http://three.example/debian/", "trixie"),
            line("http://two.example/debian/", "trixie"),
            line("http://two.example/debian/", "sid"),
        ];
        assert_eq!(mirror.sources(), wanted.concat());
        mirror.keyring = Some("/keys/debian.gpg".to_owned());
        assert!(mirror.sources().lines().all(|line| line.contains(" signed-by=/keys/debian.gpg] ")));
        assert_eq!(Mirror::parse("Ubuntu|Ubuntu|http://one.example/|noble|/etc/apt/sources.list:1\n"), None);
        assert_eq!(Mirror::parse(""), None);
    }

    #[test]
    fn keyrings_of_sources() {
        let stanzas = "# Debian: the mirror\n\nTypes: deb\n# Comment: none\nURIs: http://one.example\nSigned-By: /keys/one.gpg\n\nTypes: deb\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n";
        let of = |number| keyring(stanzas, true, number);
        assert_eq!(of(1).as_deref(), Some("/keys/one.gpg"));
        assert_eq!([of(0), of(2), of(3)], [None, None, None]);
        let lines = "# none\ndeb [arch=amd64 signed-by=/keys/two.gpg] http://two.example stable main\ndeb http://x y z\n";
        let of = |number| keyring(lines, false, number);
        assert_eq!(of(2).as_deref(), Some("/keys/two.gpg"));
        assert_eq!([of(0), of(1), of(3), of(4)], [None, None, None, None]);
    }
}
