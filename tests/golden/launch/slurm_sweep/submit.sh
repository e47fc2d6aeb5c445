sbatch --parsable --export=ALL,VITFORGE_RECORDS="$PWD" job.sbatch
