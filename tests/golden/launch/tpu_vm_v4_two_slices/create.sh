gcloud compute tpus queued-resources create ti --project=lab --zone=us-central2-b --node-count=2 --node-prefix=ti --accelerator-type=v4-16 --runtime-version=tpu-ubuntu2204-base --spot --quiet
gcloud compute tpus tpu-vm scp vitforge-code.tar.gz ti-0:vitforge-code.tar.gz --project=lab --zone=us-central2-b --worker=all --quiet
gcloud compute tpus tpu-vm ssh ti-0 --project=lab --zone=us-central2-b --worker=all --quiet '--command=mkdir -p vitforge/ti && tar --extract --gzip --file=vitforge-code.tar.gz --directory=vitforge/ti'
gcloud compute tpus tpu-vm scp vitforge-code.tar.gz ti-1:vitforge-code.tar.gz --project=lab --zone=us-central2-b --worker=all --quiet
gcloud compute tpus tpu-vm ssh ti-1 --project=lab --zone=us-central2-b --worker=all --quiet '--command=mkdir -p vitforge/ti && tar --extract --gzip --file=vitforge-code.tar.gz --directory=vitforge/ti'
gcloud compute tpus tpu-vm ssh ti-0 --project=lab --zone=us-central2-b --worker=all --quiet '--command=cd vitforge/ti && make setup'
gcloud compute tpus tpu-vm ssh ti-1 --project=lab --zone=us-central2-b --worker=all --quiet '--command=cd vitforge/ti && make setup'
