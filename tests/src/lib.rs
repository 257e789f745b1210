//! The harness for tests with real hosts: network namespaces, web servers, clients, faults on the wire, and the
//! agent under test in the middle. And that for tests of the loaded programs with one packet at a time: [`prog`].
//!
//! Needs root and Linux 6.18 or any other kernel with veth, HTB and `cls_bpf`; `cargo xtask setup` installs the
//! programs it runs (iproute2, ethtool, util-linux, nginx, dnsmasq, Envoy, kubectl, curl, wrk, nghttp2's clients).
//! Whatever a test makes is named after its process and goes when the test ends, also by a panic.

pub mod agent;
pub mod app;
mod bpf;
pub mod cmd;
pub mod container;
pub mod curl;
pub mod discovery;
pub mod dnsmasq;
pub mod echo;
pub mod envoy;
pub mod envoy_pages;
pub mod faults;
pub mod frr;
pub mod gateway;
pub mod http;
pub mod https;
pub mod keepalived;
pub mod kube_api;
pub mod kubectl;
pub mod kustomize;
pub mod lan;
pub mod lines;
pub mod load;
pub mod maps;
pub mod netns;
pub mod nginx;
pub mod packet;
pub mod pair;
pub mod payload;
pub mod pod;
pub mod prog;
pub mod rung;
pub mod sample;
pub mod scenario;
pub mod second_link;
pub mod timeline;
pub mod tls;
pub mod topology;
pub mod tun;
pub mod verifier;
pub mod websocket;
pub mod world;
