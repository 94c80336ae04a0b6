//! `[source]` and `[manifests]`: one of two sources.

use std::path::{Path, PathBuf};

use axum::http::Uri;
use toml::Spanned;

use super::{Check, Problem, Source, file};
use crate::source::apiserver::Access;

impl Check<'_> {
    pub(super) fn source(
        &mut self,
        source: &file::Source,
        directory: Option<&Spanned<String>>,
    ) -> Source {
        let file::Source {
            kind,
            kubeconfig,
            server,
        } = source;
        let kubernetes = match kind.as_ref().map(|kind| (kind, kind.get_ref().as_str())) {
            None | Some((_, "manifests")) => false,
            Some((_, "kubernetes")) => true,
            Some((kind, _)) => {
                self.bad("source.kind", kind, "write \"manifests\" or \"kubernetes\"");
                return Source::default();
            }
        };
        if !kubernetes {
            for (key, value) in [("source.kubeconfig", kubeconfig), ("source.server", server)] {
                if let Some(value) = value {
                    let remedy = "only source.kind = \"kubernetes\" reads it; write that, or \
                                  remove it";
                    self.bad(key, value, remedy);
                }
            }
            return self.manifests(directory);
        }
        if let Some(directory) = directory {
            let remedy = "source.kind = \"kubernetes\" reads no manifests; remove it, or write \
                          \"manifests\" there";
            self.bad("manifests.directory", directory, remedy);
        }
        Source::Kubernetes(Access {
            kubeconfig: kubeconfig.as_ref().map(|path| {
                let remedy = "write the path of a kubeconfig, or leave it out in a pod of the \
                              cluster";
                self.relative("source.kubeconfig", path, remedy)
            }),
            server: server.as_ref().map(|server| self.server(server)),
        })
    }

    fn manifests(&mut self, directory: Option<&Spanned<String>>) -> Source {
        let remedy = "write the directory of the manifests";
        let Some(directory) = directory else {
            self.problems.push(Problem {
                file: self.file.to_owned(),
                line: 1,
                key: "manifests.directory".to_owned(),
                value: "(missing)".to_owned(),
                remedy: format!("{remedy}, or source.kind = \"kubernetes\""),
            });
            return Source::default();
        };
        Source::Manifests(self.relative("manifests.directory", directory, remedy))
    }

    /// A relative path is relative to the configuration.
    fn relative(&mut self, key: &str, text: &Spanned<String>, remedy: &str) -> PathBuf {
        if text.get_ref().is_empty() {
            self.bad(key, text, remedy);
        }
        let folder = self.file.parent().unwrap_or(Path::new(""));
        folder.join(text.get_ref())
    }

    fn server(&mut self, server: &Spanned<String>) -> String {
        let text = server.get_ref();
        let legal =
            |uri: Uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"));
        if !text.parse().is_ok_and(legal) {
            let remedy = "write the URL of an API server, as \"https://192.0.2.1:6443\"";
            self.bad("source.server", server, remedy);
        }
        text.clone()
    }
}
