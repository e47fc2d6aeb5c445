kubectl --namespace=default apply --dry-run=server --validate=strict --filename=manifests.json
kubectl --namespace=default apply --filename=manifests.json
