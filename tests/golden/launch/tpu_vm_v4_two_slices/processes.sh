#!/bin/sh
cd "$(dirname "$0")" || exit
address=$(gcloud compute tpus tpu-vm describe ti-0 --project=lab --zone=us-central2-b '--format=value(networkEndpoints[0].ipAddress)')
{ sed "s/COORDINATOR/$address/" process_0.json; while sleep 5; do echo; done; } | gcloud compute tpus tpu-vm ssh ti-0 --project=lab --zone=us-central2-b --worker=0 --quiet '--command=vitforge/ti/.venv/bin/python vitforge/ti/tools/launchers/attended.py' &
{ sed "s/COORDINATOR/$address/" process_1.json; while sleep 5; do echo; done; } | gcloud compute tpus tpu-vm ssh ti-0 --project=lab --zone=us-central2-b --worker=1 --quiet '--command=vitforge/ti/.venv/bin/python vitforge/ti/tools/launchers/attended.py' &
{ sed "s/COORDINATOR/$address/" process_2.json; while sleep 5; do echo; done; } | gcloud compute tpus tpu-vm ssh ti-1 --project=lab --zone=us-central2-b --worker=0 --quiet '--command=vitforge/ti/.venv/bin/python vitforge/ti/tools/launchers/attended.py' &
{ sed "s/COORDINATOR/$address/" process_3.json; while sleep 5; do echo; done; } | gcloud compute tpus tpu-vm ssh ti-1 --project=lab --zone=us-central2-b --worker=1 --quiet '--command=vitforge/ti/.venv/bin/python vitforge/ti/tools/launchers/attended.py' &
wait
