//! A private certificate authority and one certificate a server.

use std::net::IpAddr;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::folder::Folder;
use crate::output::write_secret;

/// Far off: certificates are replaced by running `init` anew, not by a clock.
const LAST_YEAR: i32 = 2046;

/// Writes `ca.crt` for everybody, `ca.key` for the operator, and each server's pair.
pub(super) fn write(folder: &Folder) -> anyhow::Result<()> {
    let made = "certificates cannot be made";
    let key = KeyPair::generate().context(made)?;
    let mut authority = parameters("ternfleet authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = authority.self_signed(&key).context(made)?.pem();
    write_secret(&folder.root.join("ca.key"), &key.serialize_pem())?;
    write_secret(&folder.root.join("ca.crt"), &certificate)?;
    write_secret(&folder.coordinator().join("ca.crt"), &certificate)?;
    let issuer = Issuer::new(authority, key);
    for node in &folder.nodes {
        let mut server = parameters(&node.name);
        server.subject_alt_names = vec![match node.host.parse::<IpAddr>() {
            Ok(address) => rcgen::SanType::IpAddress(address),
            Err(_) => rcgen::SanType::DnsName(node.host.as_str().try_into().context(made)?),
        }];
        // Servers are each other's clients.
        server.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let server_key = KeyPair::generate().context(made)?;
        let signed = server.signed_by(&server_key, &issuer).context(made)?;
        let place = folder.server(node);
        write_secret(&place.join("server.crt"), &signed.pem())?;
        write_secret(&place.join("server.key"), &server_key.serialize_pem())?;
        write_secret(&place.join("ca.crt"), &certificate)?;
    }
    Ok(())
}

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2025, 1, 1);
    parameters.not_after = date_time_ymd(LAST_YEAR, 1, 1);
    parameters
}
