//! Kubernetes manifests: built as `kubectl apply -k` builds them, and held against the schemas of the API.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cmd::{line_of, output};
use crate::kubectl;

/// What a directory with a `kustomization.yaml` is built to.
#[derive(Debug)]
pub struct Manifests {
    text: String,
    /// In kubectl's order.
    pub objects: Vec<Value>,
}

impl Manifests {
    /// `kubectl kustomize DIRECTORY`; asks no cluster.
    pub fn build(directory: &Path) -> Result<Self> {
        let text = output(Command::new(kubectl::tool("kubectl")?).arg("kustomize").arg(directory))?;
        let objects = serde_saphyr::from_multiple(&text)
            .with_context(|| format!("the YAML that {} is built to", directory.display()))?;
        Ok(Self { text, objects })
    }

    /// The only object of this kind and name.
    pub fn get(&self, kind: &str, name: &str) -> Result<&Value> {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        let mut found = self.objects.iter().filter(is);
        let object = found.next().with_context(|| format!("there is no {kind} {name}"))?;
        ensure!(found.next().is_none(), "there are several of {kind} {name}");
        Ok(object)
    }

    /// Holds every object against the strict schema of this version of Kubernetes, in which a field that does not exist is
    /// an error. The kinds that it has no schema of (custom resources), or what it finds.
    pub fn validate(&self, version: &str) -> Result<BTreeSet<String>> {
        let mut command = Command::new(kubectl::tool("kubernetes-validate")?);
        command.env("PYTHONPATH", kubectl::tools()?).args(["--strict", "--kubernetes-version", version, "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot start `{}`", line_of(&command)));
        let mut child = child?;
        // It reads all before it says anything.
        child.stdin.take().context("its stdin")?.write_all(self.text.as_bytes())?;
        let result = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&result.stdout);
        if !result.status.success() {
            let errors: Vec<&str> = said.lines().filter(|line| !line.starts_with("INFO")).collect();
            bail!("{}{}", errors.join("\n"), String::from_utf8_lossy(&result.stderr));
        }
        let (passed, rest): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("INFO"));
        ensure!(passed.len() + rest.len() == self.objects.len(), "of {}: {said}", self.objects.len());
        let kind = |line: &&str| {
            let (_, kind) = line.split_once("Couldn't find schema for kind ")?;
            kind.split(' ').next().map(str::to_owned)
        };
        rest.iter().map(|line| kind(line).with_context(|| format!("not understood: {line}"))).collect()
    }
}

/// The versions of Kubernetes that there are schemas of, from the oldest on.
pub fn versions() -> Result<Vec<String>> {
    let schemas = kubectl::tools()?.join("kubernetes_validate/kubernetes-json-schema");
    let mut versions = Vec::new();
    for entry in fs::read_dir(&schemas).with_context(|| format!("{}", schemas.display()))? {
        let name = entry?.file_name().into_string();
        let name = name.ok().context("a name that is not UTF-8")?;
        let version = name.strip_prefix('v').and_then(|name| name.strip_suffix("-local-strict"));
        versions.extend(version.map(str::to_owned));
    }
    versions.sort_by_key(|version| minor(version));
    Ok(versions)
}

/// The 30 of 1.30.0.
pub fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}
