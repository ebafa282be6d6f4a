//! `error_pages` of a server: what is sent with errors that are ours. What an origin answers is the origin's to say.

use std::collections::HashMap;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};

use super::Files;
use super::action::files::content_type;
use super::body::{Content, ResponseBody};
use super::error::Ours;
use crate::config::http::{ErrorPagesSpec, PageFor};

/// The pages of a server, read at prepare.
#[derive(Debug)]
pub struct ErrorPages {
    exact: HashMap<u16, Page>,
    /// Of 4xx and 5xx.
    classes: [Option<Page>; 2],
}

#[derive(Debug, Clone)]
struct Page {
    bytes: Bytes,
    kind: HeaderValue,
}

impl ErrorPages {
    /// `None`: there are none. Every file is in `files` (the document's checks guarantee it).
    pub fn build(spec: &ErrorPagesSpec, files: &Files) -> Option<ErrorPages> {
        if spec.is_empty() {
            return None;
        }
        let mut pages = ErrorPages {
            exact: HashMap::new(),
            classes: [None, None],
        };
        for (page_for, path) in spec.pages() {
            let name = path.file_name().and_then(|name| name.to_str());
            let page = Page {
                bytes: files.get(path).cloned().unwrap_or_default(),
                kind: content_type(name.unwrap_or_default()),
            };
            match page_for {
                PageFor::Status(status) => _ = pages.exact.insert(status, page),
                PageFor::Class(4) => pages.classes[0] = Some(page),
                PageFor::Class(_) => pages.classes[1] = Some(page),
            }
        }
        Some(pages)
    }

    /// Puts the page in, if the response is an error of ours and there is one for it. Fields but the type stay.
    pub fn replace(&self, response: &mut Response<ResponseBody>) {
        if response.extensions().get::<Ours>().is_none() {
            return;
        }
        let status = response.status();
        let class = || match status.as_u16() {
            400..=499 => self.classes[0].as_ref(),
            500..=599 => self.classes[1].as_ref(),
            _ => None,
        };
        let Some(page) = self.exact.get(&status.as_u16()).or_else(class) else {
            return;
        };
        let content = Content::from(page.bytes.clone());
        *response.body_mut() = ResponseBody::new(content);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, page.kind.clone());
    }
}
