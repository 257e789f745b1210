//! What it means that a Service has no EndpointSlice.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use super::access::Server;
use super::failure::{self, Request};
use super::slices::Found;
use crate::model::Kubernetes;

/// No endpoints, where that is what the Service means; else why that is not so.
///
/// The controller gives a Service with a selector a slice even where no Pod matches. Without one the Service is newer than
/// its slices, or the slices were lost, as in a restored API server: nothing that should take the endpoints away.
pub(super) async fn without_slices(
    client: &Client,
    of: &Kubernetes,
    server: &Server,
) -> Result<Found, String> {
    let Kubernetes { namespace, service: name, .. } = of;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let request = Request { verb: "get", resource: "services", namespace };
    let service = match services.get_opt(name).await {
        Ok(Some(service)) => service,
        Ok(None) => return Err(format!("service {namespace}/{name} not found")),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(format!(
                "service {namespace}/{name} has no EndpointSlice, or does not exist: {}",
                failure::of_status(&status, request, server)
            ));
        }
        Err(error) => return Err(failure::of_request(&error, request, server)),
    };
    let spec = service.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = failure::one_line(spec.external_name.as_deref().unwrap_or_default());
        return Err(format!(
            "service {namespace}/{name} is another name of {target}: use type: strict_dns with it"
        ));
    }
    if spec.selector.is_some_and(|selector| !selector.is_empty()) {
        return Err(format!(
            "service {namespace}/{name} has no EndpointSlice yet: the cluster's controller makes one for every selector"
        ));
    }
    let why = format!("service {namespace}/{name} has no EndpointSlice");
    Ok(Found { endpoints: Vec::new(), left: BTreeMap::new(), why })
}
