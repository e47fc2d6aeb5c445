#!/bin/sh
# To be run in the root of the code, on a file system that the nodes share.
here=$(cd "$(dirname "$0")" && pwd)
exec sbatch --parsable --export=ALL,VITFORGE_RECORDS="$here/records" "$here/job.sbatch"
