module go_leaks

go 1.19
