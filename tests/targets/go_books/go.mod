module go_books

go 1.19
