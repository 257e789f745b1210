//! Big files to transfer, and their hashes.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest as _, Sha256};

/// A file in memory that other processes can open by [`Payload::path`]; it goes with this process.
#[derive(Debug)]
pub struct Payload {
    file: File,
    pub bytes: u64,
    pub sha256: String,
}

impl Payload {
    /// Random content of `mib` mebibytes, in which no two pages are alike.
    pub fn random(mib: u64) -> Result<Self> {
        const PAGE: usize = 4096;
        let mut file = File::from(memfd_create("payload", MemfdFlags::CLOEXEC)?);
        let mut block = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut block)?;
        let mut hash = Sha256::new();
        for index in 0..mib {
            // The same random block again and again, but with its place in the file in each page.
            for page in block.chunks_exact_mut(PAGE) {
                page[..8].copy_from_slice(&index.to_le_bytes());
            }
            hash.update(&block);
            file.write_all(&block).context("no memory for the file to transfer")?;
        }
        Ok(Self { file, bytes: mib << 20, sha256: hex(&hash.finalize()) })
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// The length and SHA-256 of everything that can be read.
pub fn sha256_of(mut source: impl Read) -> Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            length => {
                hash.update(&buffer[..length]);
                bytes += length as u64;
            }
        }
    }
}

/// The same of a file.
pub fn sha256_of_file(path: &Path) -> Result<(u64, String)> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    sha256_of(file)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
