#!/bin/sh
# To be run in the root of the code.
gcloud compute tpus queued-resources create ti --project=lab --zone=us-central2-b --node-count=2 --node-prefix=ti --accelerator-type=v4-16 --runtime-version=tpu-ubuntu2204-base --spot --quiet || exit
until gcloud compute tpus queued-resources describe ti --project=lab --zone=us-central2-b '--format=value(state.state)' | grep -q ACTIVE; do sleep 15; done
git ls-files --cached --others --exclude-standard -z | tar --create --gzip --null --files-from=- --file=vitforge-code.tar.gz
gcloud compute tpus tpu-vm scp vitforge-code.tar.gz ti-0:vitforge-code.tar.gz --project=lab --zone=us-central2-b --worker=all --quiet
gcloud compute tpus tpu-vm ssh ti-0 --project=lab --zone=us-central2-b --worker=all --quiet '--command=mkdir -p vitforge/ti && tar --extract --gzip --file=vitforge-code.tar.gz --directory=vitforge/ti'
gcloud compute tpus tpu-vm ssh ti-0 --project=lab --zone=us-central2-b --worker=all --quiet '--command=cd vitforge/ti && make setup'
gcloud compute tpus tpu-vm scp vitforge-code.tar.gz ti-1:vitforge-code.tar.gz --project=lab --zone=us-central2-b --worker=all --quiet
gcloud compute tpus tpu-vm ssh ti-1 --project=lab --zone=us-central2-b --worker=all --quiet '--command=mkdir -p vitforge/ti && tar --extract --gzip --file=vitforge-code.tar.gz --directory=vitforge/ti'
gcloud compute tpus tpu-vm ssh ti-1 --project=lab --zone=us-central2-b --worker=all --quiet '--command=cd vitforge/ti && make setup'
