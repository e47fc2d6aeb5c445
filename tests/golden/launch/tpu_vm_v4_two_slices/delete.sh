gcloud compute tpus queued-resources delete ti --project=lab --zone=us-central2-b --force --quiet
