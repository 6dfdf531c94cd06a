//! A private certificate authority and one certificate a server.

use std::net::IpAddr;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use super::folder::Folder;
use crate::output::write_secret;

/// Far off: certificates are replaced by running `init` again, not by a clock.
const LAST_YEAR: i32 = 2046;
const MADE: &str = "certificates cannot be made";

/// Signs the certificates of a fleet's servers.
#[derive(Debug)]
pub(crate) struct Authority {
    key: KeyPair,
}

/// A server's certificate and key, as PEM.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Authority> {
        Ok(Authority { key: KeyPair::generate().context(MADE)? })
    }

    /// From the key that [`Authority::key`] gave. Its certificates are as good as those that it made before.
    pub(crate) fn from_key(pem: &str) -> anyhow::Result<Authority> {
        Ok(Authority { key: KeyPair::from_pem(pem).context("the authority's key cannot be read")? })
    }

    pub(crate) fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// What everybody trusts who talks to the servers.
    pub(crate) fn certificate(&self) -> anyhow::Result<String> {
        Ok(authority_parameters().self_signed(&self.key).context(MADE)?.pem())
    }

    /// A pair for a server that is reached under these names or addresses.
    pub(crate) fn server(&self, name: &str, hosts: &[&str]) -> anyhow::Result<Pair> {
        let mut server = parameters(name);
        for host in hosts {
            server.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*host).try_into().context(MADE)?),
            });
        }
        // Servers are each other's clients.
        server.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().context(MADE)?;
        let signed = server.signed_by(&key, &Issuer::new(authority_parameters(), &self.key)).context(MADE)?;
        Ok(Pair { certificate: signed.pem(), key: key.serialize_pem() })
    }
}

/// Writes `ca.crt` for everybody, `ca.key` for the operator, and each server's pair.
pub(super) fn write(folder: &Folder, authority: &Authority) -> anyhow::Result<()> {
    let certificate = authority.certificate()?;
    write_secret(&folder.root.join("ca.key"), &authority.key())?;
    write_secret(&folder.root.join("ca.crt"), &certificate)?;
    write_secret(&folder.coordinator().join("ca.crt"), &certificate)?;
    for node in &folder.nodes {
        let pair = authority.server(&node.name, &node.hosts())?;
        let place = folder.server(node);
        write_secret(&place.join("server.crt"), &pair.certificate)?;
        write_secret(&place.join("server.key"), &pair.key)?;
        write_secret(&place.join("ca.crt"), &certificate)?;
    }
    Ok(())
}

fn authority_parameters() -> CertificateParams {
    let mut authority = parameters("ternfleet authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
}

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2025, 1, 1);
    parameters.not_after = date_time_ymd(LAST_YEAR, 1, 1);
    parameters
}
