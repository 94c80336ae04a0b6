//! What a source cannot tell: objects that it has never been able to read.

use super::{Kind, ObjectRef, ServicePort};

/// Something that may be desired and could not be read, neither now nor from a copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unknown {
    /// Any objects: a file or a directory could not be read.
    Anything,
    /// This one.
    Object {
        /// Which.
        object: ObjectRef,
        /// Of an `EndpointSlice`: the Service that it names, if that much can be read.
        service: Option<String>,
    },
}

impl Unknown {
    /// Whether the service port of this name may be more than what is desired of it as far as can
    /// be told.
    #[must_use]
    pub fn may_be(&self, name: &str, desired: Option<&ServicePort>) -> bool {
        let (object, service) = match self {
            Self::Anything => return desired.is_none_or(|port| port.endpoints.is_empty()),
            Self::Object { object, service } => (object, service.as_deref()),
        };
        let ObjectRef {
            kind,
            namespace,
            name: own,
        } = object;
        let Some(rest) = (match kind {
            Kind::Pod => name.strip_prefix("pod/"),
            // It has no namespace: what is left begins with the slash that ends one.
            Kind::ReturnProxy => name.strip_prefix("return-proxy"),
            Kind::Service | Kind::EndpointSlice => Some(name),
            Kind::Namespace | Kind::Node => None,
        }) else {
            return false;
        };
        let of_namespace = rest
            .strip_prefix(namespace.as_str())
            .and_then(|rest| rest.strip_prefix('/'));
        let of = |service: &str| {
            of_namespace
                .and_then(|rest| rest.strip_prefix(service))
                .is_some_and(|rest| rest.starts_with(':'))
        };
        match (kind, service) {
            (Kind::EndpointSlice, None) => of_namespace.is_some(),
            (Kind::EndpointSlice, Some(service)) => of(service),
            _ => of(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_service_ports_are_told_apart() {
        let object = |kind, service: Option<&str>| Unknown::Object {
            object: ObjectRef {
                kind,
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
            },
            service: service.map(str::to_owned),
        };
        let rows = [
            (object(Kind::Service, None), "shop/web:80/TCP", true),
            (object(Kind::Service, None), "shop/web2:80/TCP", false),
            (object(Kind::Service, None), "shop2/web:80/TCP", false),
            (object(Kind::Service, None), "pod/shop/web:80/TCP", false),
            (object(Kind::Pod, None), "pod/shop/web:80/TCP", true),
            (object(Kind::Pod, None), "shop/web:80/TCP", false),
            (object(Kind::EndpointSlice, None), "shop/any:80/TCP", true),
            (object(Kind::EndpointSlice, None), "else/any:80/TCP", false),
            (
                object(Kind::EndpointSlice, Some("db")),
                "shop/db:1/TCP",
                true,
            ),
            (
                object(Kind::EndpointSlice, Some("db")),
                "shop/web:80/TCP",
                false,
            ),
            (object(Kind::Node, None), "shop/web:80/TCP", false),
            (Unknown::Anything, "shop/web:80/TCP", true),
        ];
        for (unknown, name, may_be) in rows {
            assert_eq!(unknown.may_be(name, None), may_be, "{unknown:?} {name}");
        }
    }
}
