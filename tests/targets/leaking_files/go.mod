module leaking_files

go 1.19
