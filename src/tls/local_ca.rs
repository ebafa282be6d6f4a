//! The CA behind `self_signed`: made once and kept in the state folder, so that whoever has told their system to trust it
//! is not asked again at each start. It vouches for nothing but what this process serves, and its key never leaves the
//! folder.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::{Certificate, hex};

/// Its folder within the state folder, and what is in there.
const FOLDER: &str = "local-ca";
const CERT: &str = "ca.crt";
const KEY: &str = "ca.key";
/// Of all that it signs: one that is pinned is not another after a start.
const LEAF_KEY: &str = "server.key";
/// How long the CA and what it signs are valid. Some systems take no certificate of more than 398 days.
const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 397;
/// Clocks differ.
const EARLIER_DAYS: i64 = 2;

/// Where the certificate of the CA is, or will be.
pub fn certificate_path(state_folder: &Path) -> PathBuf {
    state_folder.join(FOLDER).join(CERT)
}

/// Ready to sign.
pub(super) struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    leaf: KeyPair,
}

impl LocalCa {
    /// Reads it, or makes it. A key whose certificate is gone (it was being made when the power went) gets another one.
    ///
    /// # Errors
    /// Those of the system; and one with a plain sentence for a key that cannot be used.
    pub(super) fn open(state_folder: &Path) -> io::Result<LocalCa> {
        let folder = state_folder.join(FOLDER);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            builder.mode(0o700);
        }
        builder.create(&folder)?;
        let (cert_path, key_path) = (folder.join(CERT), folder.join(KEY));
        let key = kept_key(&key_path)?;
        let params = params(&key)?;
        if !fs::read(&cert_path).is_ok_and(|pem| fits(&pem, &key)) {
            let made = params.self_signed(&key).map_err(io::Error::other)?;
            write(&cert_path, &made.pem(), false)?;
        }
        let issuer = Issuer::new(params, key);
        let leaf = kept_key(&folder.join(LEAF_KEY))?;
        Ok(LocalCa { issuer, leaf })
    }

    /// Signs a certificate for `names` (host names and IP addresses).
    pub(super) fn issue(
        &self,
        names: &[String],
        provider: &CryptoProvider,
    ) -> Result<Certificate, String> {
        let say = |error: &dyn std::fmt::Display| error.to_string();
        let mut params = CertificateParams::new(names.to_vec()).map_err(|e| say(&e))?;
        valid(&mut params, LEAF_DAYS).map_err(|e| say(&e))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let first = names.first().map_or("evergate", String::as_str);
        params.distinguished_name.push(
            DnType::CommonName,
            first.chars().take(64).collect::<String>(),
        );
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&self.leaf, &self.issuer)
            .map_err(|e| say(&e))?;
        let key = PrivateKeyDer::try_from(self.leaf.serialize_der())?;
        Certificate::new(vec![leaf.der().clone()], key, provider).map_err(|e| say(&e))
    }
}

/// The key that lies there, or one that is made and put there.
fn kept_key(path: &Path) -> io::Result<KeyPair> {
    match fs::read_to_string(path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(|error| unusable(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            write(path, &key.serialize_pem(), true)?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

/// What the certificate of the CA says. Its name follows from the key, so that the two are found together again.
fn params(key: &KeyPair) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.distinguished_name = rcgen::DistinguishedName::new();
    let id = hex(&Sha256::digest(key.subject_public_key_info())[..4]);
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, "Evergate local development");
    name.push(DnType::CommonName, format!("Evergate local CA {id}"));
    valid(&mut params, CA_DAYS)?;
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: i64) -> io::Result<()> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let date = |days: i64| {
        let date = today.checked_add(days.days()).map_err(io::Error::other)?;
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        Ok::<_, io::Error>(rcgen::date_time_ymd(date.year().into(), month, day))
    };
    params.not_before = date(-EARLIER_DAYS)?;
    params.not_after = date(days)?;
    Ok(())
}

/// True if the certificate is that of the key, and valid for a while.
fn fits(pem: &[u8], key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem) else {
        return false;
    };
    X509Certificate::from_der(&der).is_ok_and(|(_, parsed)| {
        let left = parsed.validity().not_after.timestamp() - Timestamp::now().as_second();
        parsed.public_key().raw == key.subject_public_key_info() && left > LEAF_DAYS * 86_400
    })
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    let message = format!("{} cannot be used: {error}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str, secret: bool) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = secret; // what the folder allows is what the file allows
    let mut file = options.open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    #[test]
    fn it_is_made_once_and_clients_that_trust_it_trust_what_it_signs() {
        let state = tempfile::tempdir().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        LocalCa::open(state.path()).unwrap();
        let pem = fs::read_to_string(certificate_path(state.path())).unwrap();
        let trusts = |ca: &LocalCa| {
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            roots.add(root).unwrap();
            let verifier =
                WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
                    .build()
                    .unwrap();
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let leaf = ca.issue(&names, &provider).unwrap();
            assert_eq!(leaf.names(), names);
            names.iter().all(|name| {
                let name = ServerName::try_from(name.clone()).unwrap();
                let leaf = &leaf.key.cert[0];
                verifier
                    .verify_server_cert(leaf, &[], &name, &[], UnixTime::now())
                    .is_ok()
            })
        };
        assert!(trusts(&LocalCa::open(state.path()).unwrap()));
        // The certificate is gone: another one of the same key and name does as well.
        fs::remove_file(certificate_path(state.path())).unwrap();
        assert!(trusts(&LocalCa::open(state.path()).unwrap()));
        assert!(certificate_path(state.path()).exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let key = state.path().join(FOLDER).join(KEY);
            assert_eq!(
                fs::metadata(key).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn a_key_that_is_none_is_left_alone() {
        let state = tempfile::tempdir().unwrap();
        LocalCa::open(state.path()).unwrap();
        let key = state.path().join(FOLDER).join(KEY);
        fs::write(&key, "mine").unwrap();
        assert!(LocalCa::open(state.path()).is_err());
        assert_eq!(fs::read_to_string(&key).unwrap(), "mine");
    }
}
