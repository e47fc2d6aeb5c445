cd "$(dirname "$0")" || exit
kubectl --namespace=default apply --dry-run=server --validate=strict --filename=manifests.json || exit
kubectl --namespace=default apply --filename=manifests.json
