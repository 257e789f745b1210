//! A `name` with a `typed_config`, as v3 writes filters, loggers and policies; v2 has `config` without a type too.

use super::import::Import;
use super::message::Message;
use super::value;
use crate::config::tree::Entry;
use crate::config::yaml::Value;

/// Types whose value is a Struct in the form of another type.
const TYPED_STRUCTS: [&str; 3] =
    ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct", "envoy.config.core.v3.TypedStruct"];

/// What an extension is, and its settings.
pub(super) struct Extension<'a> {
    /// The full name of its type (`envoy.….v3.TcpProxy`), or its own name where v2 gives no type.
    pub(super) kind: &'a str,
    /// `None`: all defaults.
    pub(super) config: Option<Entry<'a>>,
    /// What to point at: the type, or the name.
    pub(super) place: Entry<'a>,
}

/// Of the mapping at `entry`, whose keys `name`, `typed_config` and `config` are in `message`.
pub(super) fn read<'a>(
    entry: &Entry<'a>,
    message: &Message<'a>,
    import: &mut Import<'_>,
) -> Option<Extension<'a>> {
    let name = message.get("name");
    match message.one_of(&["typed_config", "config"], import) {
        Some(config) if message.get("typed_config").is_some() => {
            if let Some(name) = name {
                value::text(name, import)?;
                import.ignore(name, "the type says what it is");
            }
            any(config, import)
        }
        config => {
            let Some(name) = name else {
                import.error(entry, "needs a name, and a typed_config with its @type");
                return None;
            };
            if let Some(config) = config
                && !config.is_map()
            {
                config.refuse_type("a mapping", import.report);
                return None;
            }
            let kind = value::nonempty(name, import)?;
            // In v3 the names of the types that clusters have always had are the only ones that suffice.
            if !kind.starts_with("envoy.cluster.") {
                import.is_v2(name);
            }
            Some(Extension { kind, config: config.cloned(), place: name.clone() })
        }
    }
}

/// An Any: a mapping with `@type`.
pub(super) fn any<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Extension<'a>> {
    if !entry.is_map() {
        entry.refuse_type("a mapping with @type", import.report);
        return None;
    }
    let Some(url) = member(entry, "@type") else {
        import.error(entry, "no `@type`: write it, as in type.googleapis.com/envoy.extensions....");
        return None;
    };
    let mut kind = type_name(&url, import)?;
    let (mut config, mut place) = (entry.clone(), url);
    if TYPED_STRUCTS.contains(&kind) {
        let inner = ["type_url", "typeUrl"].iter().find_map(|key| member(entry, key));
        let (Some(inner), Some(value)) = (inner, member(entry, "value")) else {
            import.error(entry, "a TypedStruct needs type_url and value");
            return None;
        };
        kind = type_name(&inner, import)?;
        (config, place) = (value, inner);
    }
    if kind.contains(".v2.") || kind.contains(".v2alpha.") {
        import.is_v2(&place);
    } else if kind.contains(".v3.") {
        import.is_v3(&place);
    }
    Some(Extension { kind, config: Some(config), place })
}

fn member<'a>(entry: &Entry<'a>, name: &str) -> Option<Entry<'a>> {
    entry.members().find(|(key, _)| key.name == name).map(|(_, member)| member)
}

fn type_name<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<&'a str> {
    let Value::Text(url) = entry.value() else {
        entry.refuse_type("a type, as in type.googleapis.com/envoy.extensions....", import.report);
        return None;
    };
    match url.rsplit_once('/') {
        Some((_, name)) if !name.is_empty() => Some(name),
        _ => {
            import.error(entry, format!("`{url}` is no type: write type.googleapis.com/ and its full name"));
            None
        }
    }
}
