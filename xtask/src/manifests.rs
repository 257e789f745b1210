//! The check that every member of the workspace inherits its lints: a member without
//! `[lints] workspace = true` silently has none.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

pub(crate) fn check_lints(root: &Path) -> Result<()> {
    let members = members(&read(&root.join("Cargo.toml"))?);
    if members.is_empty() {
        bail!("Cargo.toml: no `members = [...]` in [workspace]");
    }
    let mut without = Vec::new();
    for member in &members {
        let manifest = Path::new(member).join("Cargo.toml");
        if !inherits_lints(&read(&root.join(&manifest))?) {
            without.push(manifest.display().to_string());
        }
    }
    if !without.is_empty() {
        bail!(
            "the lints of the workspace are not inherited; add `[lints]`, `workspace = true` to {}",
            without.join(", ")
        );
    }
    println!("inherited by {}", members.join(", "));
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("{}", file.display()))
}

/// The strings of `members = [...]`; paths with a wildcard are not for this workspace.
fn members(manifest: &str) -> Vec<String> {
    let uncommented: Vec<_> = manifest.lines().map(without_comment).collect();
    let Some(start) = uncommented.iter().position(|line| line.starts_with("members")) else {
        return Vec::new();
    };
    let list = uncommented[start..].join(" ");
    let list = list.split_once('[').map_or("", |(_, rest)| rest);
    let list = list.split_once(']').map_or("", |(list, _)| list);
    list.split(',')
        .map(|member| member.trim().trim_matches('"').to_owned())
        .filter(|m| !m.is_empty())
        .collect()
}

fn inherits_lints(manifest: &str) -> bool {
    let mut section = "";
    for line in manifest.lines().map(without_comment) {
        if line.starts_with('[') {
            section = line;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let inherits = match section {
            "[lints]" => key.trim() == "workspace",
            "" => key.trim() == "lints.workspace",
            _ => false,
        };
        if inherits {
            return value.trim() == "true";
        }
    }
    false
}

/// The manifests of this workspace have no `#` inside a string that matters here.
fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_on_one_line_or_many() {
        let one = "[workspace]\nmembers = [\"a\", \"b/c\"]\ndefault-members = [\"a\"]\n";
        let many = "[workspace]\nmembers = [ # all\n  \"a\",\n  # not \"x\"\n  \"b/c\",\n]\n";
        assert_eq!(members(one), ["a", "b/c"]);
        assert_eq!(members(many), ["a", "b/c"]);
        assert!(members("[workspace]\ndefault-members = [\"a\"]\n").is_empty());
    }

    #[test]
    fn inheritance_is_seen() {
        assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true # all of them\n"));
        assert!(inherits_lints("lints.workspace = true\n[package]\nname = \"a\"\n"));
    }

    #[test]
    fn missing_inheritance_is_seen() {
        for manifest in [
            "[package]\nname = \"a\"\n",
            "[lints]\nworkspace = false\n",
            "# [lints]\n# workspace = true\n",
            "[lints.rust]\nworkspace = true\n",
            "[dependencies.x]\nworkspace = true\n",
            "[lints]\n[dependencies.x]\nworkspace = true\n",
        ] {
            assert!(!inherits_lints(manifest), "{manifest}");
        }
    }

    #[test]
    fn this_workspace_inherits() {
        check_lints(&crate::workspace::Workspace::locate().unwrap().root).unwrap();
    }
}
